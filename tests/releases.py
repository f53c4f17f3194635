"""Releases made from records alone, with no model: what the catalogue is made of, as it would be on the Hub."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hft2ane import records
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.fidelity import Fidelity, Greedy, Measure
from hft2ane.records.lint import Lint, LintSettings, Placed, Verdict
from hft2ane.records.mac import Mac
from hft2ane.records.night import Outcome, Run
from hft2ane.records.package import SEVERAL_OS, SINGLE_OS, Function, Made, Package, Tensor
from hft2ane.records.recipe import Recipe, Task, Variant
from hft2ane.records.release import Conversion, Report
from hft2ane.records.source import CardFields, Source
from hft2ane.site.collect import Plot, Release
from tests.synthetic import synthetic

PROTOCOL = "hft2ane-psnr-2"
# Of float16 all of it, of the others a share; and what is lost, in dB.
SHARES: dict[Variant, tuple[float, float]] = {
    "float16": (1.0, 0.0),
    "int8": (0.507, 26.3),
    "palettized-6": (0.447, 36.6),
    "mixed-4": (0.418, 43.4),
}
TEXTS = (
    "Where is the nearest railway station, and when does the last train leave?",
    "أين تقع أقرب محطة قطار؟",
    "最近的火车站在哪里？",
    "",
    "random ids 3",
    "The cat sat on the mat.",
)


def png() -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def measures(psnr: float, length: int, rows: Sequence[str] = TEXTS) -> Iterator[Measure]:
    for n, text in enumerate(rows):
        kind = ("sentences", "pairs", "one token")[n % 3]
        yield Measure("logits", length, kind, 12, psnr + 4, psnr + n, psnr + n + 3, 0.999999, 1.0, text)


def release(
    id: str,
    *,
    owner: str = "org",
    task: Task = "fill-mask",
    family: str = "bert",
    license: str = "apache-2.0",
    size: int = 45_060_000,
    psnr: float = 72.5,
    lengths: tuple[int, ...] = (128,),
    variants: Sequence[Variant] = ("float16",),
    language: tuple[str, ...] = ("en",),
    protocol: str = PROTOCOL,
    mac: Mac | None = None,
    retired: str | None = None,
    texts: Sequence[str] = TEXTS,
) -> Release:
    name = id.rpartition("/")[2]
    minimum = SINGLE_OS if len(lengths) == 1 else SEVERAL_OS
    functions = tuple(
        Function(
            "main" if len(lengths) == 1 else f"length_{n}",
            n,
            (Tensor("input_ids", (1, n), "int32", "the tokens"),),
            (Tensor("logits", (1, n, 30522), "float16", "scores"),),
        )
        for n in lengths
    )
    packages = tuple(
        Package(
            each,
            f"{name}.{each}.mlpackage",
            f"sha256:{zlib.crc32(f'{id}{each}'.encode()):064x}",
            int(size * SHARES[each][0]),
            minimum,
            functions,
            functions[0].name,
            "fp16" if each == "float16" else each,
        )
        for each in variants
    )
    bars = [
        ("rewrite", "torch", 90.0, psnr + 60),
        *((each, "mil-declared", 50.0, psnr - SHARES[each][1]) for each in variants),
    ]
    fidelity = tuple(
        Fidelity(
            what,
            backend,
            gate if what != "mixed-4" else 25.0,
            least + 2,
            least,
            least + 3,
            1.0,
            tuple(m for n in lengths for m in measures(least, n, texts)),
        )
        for what, backend, gate, least in bars
    )
    verdict = Verdict("main", "op", "embed", "gather", (1,), 1, "cpu", "looked up")
    lint = tuple(
        Lint(
            p.file,
            LintSettings(),
            (),
            tuple(Placed(f.name, 220, 9, {"ane": 0.97}, {"ane": 0.999}) for f in functions),
            (verdict,),
        )
        for p in packages
    )
    report = Report(protocol, "key", fidelity, (), ("Core ML: it runs on macOS only",), 1.0, lint)
    if mac is not None:
        measured = synthetic(mac, {p.what: p.digest for p in packages}, f"{owner}/{name}-ane")
        taken = replace(measured.latency[1], median_ms=1.234)
        latency = tuple(replace(taken, variant=each, function=f.name) for each in variants for f in functions)
        report = replace(report, not_measured=(), macs=(replace(measured, latency=latency),))
    if task == "text-generation":
        report = replace(report, greedy=(Greedy("float16", "mil-declared", 64, 8, 7, 400, 391),))
    made = Made("0.1.0", "c" * 40, False, "l" * 64, {"torch": "2.13.0"}, "Linux", "x86_64", "3.11.7")
    conversion = Conversion(
        source=Source(id, f"{zlib.crc32(id.encode()):040x}", (), CardFields(license, language=language)),
        recipe=Recipe(task, lengths, tuple(variants)),
        family=family,
        task=task,
        original="BertForMaskedLM",
        license=license,
        packages=packages,
        labels=(),
        problem=None,
        convert_key="key",
        verify_key="key",
        card_key="key",
        protocol=protocol,
        psnr={bar.what: bar.psnr_min for bar in fidelity},
        toolchain={"coremltools": "9.0", "torch": "2.13.0"},
        hft2ane="0.1.0",
        retired=retired,
        made=made,
    )
    pictures = (Plot(f"assets/psnr-{variants[0]}-mil-declared.png", f"PSNR of the {variants[0]} package"),)
    python = (
        f'from coremltools.models import MLModel\n\nmodel = MLModel("{packages[0].file}")\nprint(model.predict({{}}))'
    )
    swift = f'import CoreML\n\nlet model = try await MLModel.load(contentsOf: URL(filePath: "{packages[0].file}"))'
    return Release(
        f"{owner}/{name}-ane", "0" * 40, "v1", conversion, report, pictures, {"python": python, "swift": swift}
    )


def files(made: Release) -> dict[str, bytes]:
    """What is published of it that the catalogue reads."""
    pictures = "\n\n".join(f"![{plot.about}]({plot.path})" for plot in made.plots)
    code = "\n\n".join(f"```{language}\n{text}\n```" for language, text in made.snippets.items())
    head = f"---\ntags: [coreml, apple-neural-engine]\n---\n# {made.name}\n\n```bash\nhf download x\n```"
    card = f"{head}\n\n{code}\n\n{pictures}\n"
    return {
        "conversion.json": records.dump(made.conversion),
        "reports/report.json": records.dump(made.report),
        "README.md": card.encode(),
        **{plot.path: png() for plot in made.plots},
    }


def nights(owner: str = "org") -> list[Run]:
    """Three runs, the oldest first: one with failures of two kinds, one quiet, one with more of everything."""
    start = datetime(2026, 11, 26, 3, tzinfo=UTC)
    unknown = "no family for model_type 'gpt_neox'; there are albert, bert, camembert"
    failed = Outcome(
        "EleutherAI/pythia-70m", f"{owner}/pythia-70m-ane", "create", "nothing is published yet", "failed", unknown,
        kind="UnknownFamily", signature=f"UnknownFamily: {unknown}",
    )  # fmt: skip
    larger = replace(failed, id="EleutherAI/pythia-160m", repo=f"{owner}/pythia-160m-ane")
    gate = Outcome(
        "up/tight", f"{owner}/tight-ane", "create", "nothing is published yet", "failed",
        "/srv/hft2ane/work/org--tight-ane/report.json: logits has 41.2 dB, the gate is 50 dB", kind="GateFailed",
        signature="GateFailed: … logits has # dB, the gate is # dB", next=start + timedelta(days=2, hours=8),
        worker="mini-3.local", log="https://ci.example/runs/77",
    )  # fmt: skip
    done = Outcome(
        "up/m0", f"{owner}/m0-ane", "convert", "changed: model.safetensors", "published", task="fill-mask",
        rewrite=132.0, artefact=72.5, size=45_060_000, tag="v2", seconds=70,
    )  # fmt: skip
    blocked = Outcome("up/closed", f"{owner}/closed-ane", "blocked", "the licence 'other' does not allow it", "blocked")
    held = Outcome("up/m1", f"{owner}/m1-ane", "held", "20 models of the wave are done tonight", "held")
    orphan = Outcome(
        "up/old", f"{owner}/old-ane", "orphan", "published from up/old, and no manifest wants it", "orphan"
    )
    skip = Outcome("up/m2", f"{owner}/m2-ane", "skip", "nothing has changed", "skip")
    return [
        Run(start, (failed, done), (failed.id,), 812.0),
        Run(start + timedelta(days=1), (skip,), (), 9.0, broken="WorkerMismatch: mini-3 has another lock"),
        Run(
            start + timedelta(days=2),
            (failed, larger, gate, done, blocked, held, orphan, skip),
            (larger.id, gate.id),
            4321.0,
        ),
    ]  # fmt: skip


def publish(local: LocalHub, hub: Hub, made: Release, folder: Path, private: bool = False) -> str:
    """As one version more; its commit."""
    place = folder / made.repo
    for path, content in files(made).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    commit = local.add(made.repo, place, private=private)
    hub.tag(made.repo, f"v{len(local.tags(made.repo)) + 1}", commit)
    return commit
