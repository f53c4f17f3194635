"""Releases of tiny models as the steps make them, but unmeasured: for tests of what is done with a release."""

from pathlib import Path

from hft2ane import records
from hft2ane import source as fetching
from hft2ane.card.folder import copy, link, small_files, sums
from hft2ane.export import export
from hft2ane.progress import silent
from hft2ane.records.job import Job
from hft2ane.records.recipe import Recipe, Variant
from hft2ane.records.release import Conversion


def release(
    checkpoint: Path, out: Path, lengths: tuple[int, ...] = (16, 32), variants: tuple[Variant, ...] = ("float16",)
) -> Path:
    """`out`/release: packages, tokenizer, record and sums; no card and no figures."""
    recipe = Recipe(lengths=lengths, variants=variants)
    job = Job("create", "a test", f"tiny/{out.name}", f"org/{out.name}-ane", recipe=recipe)
    records.write(out / "job.json", job)
    source, exported = fetching.take(out, checkpoint, job.id), export(out)
    conversion = Conversion(
        source=source,
        recipe=recipe,
        family=exported.family,
        task=exported.task,
        original=exported.original,
        license="mit",
        packages=exported.packages,
        labels=exported.labels,
        problem=exported.problem,
        convert_key=exported.convert_key,
        verify_key="",
        card_key="",
        protocol="",
        psnr={},
        toolchain=exported.toolchain,
        hft2ane="0",
        generation=exported.generation,
    )
    folder = out / "release"
    folder.mkdir()
    copy(small_files(source.files), out / "source", folder)
    for package in exported.packages:
        link(out / package.file, folder / package.file)
    records.write(folder / "conversion.json", conversion)
    sums(folder, {}, silent)
    return folder
