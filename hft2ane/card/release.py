"""The card step: a job's folder -> release/, exactly the files that will be published, byte for byte."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hft2ane import disk, keys, layout, measurements, records
from hft2ane.card.folder import copy, link, package_sums, small_files, sums, whole
from hft2ane.card.plots import HEADROOM, PSNR, SIZES, plot_headroom, plot_psnr, plot_sizes
from hft2ane.card.readme import readme
from hft2ane.card.tables import least_psnr, sized
from hft2ane.checksums import SUMS
from hft2ane.errors import GateFailed
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.package import Audit, Exported, bars
from hft2ane.records.release import Conversion, Report
from hft2ane.records.source import RemoteFile, Source

UNKNOWN = "unknown"


def write(folder: Path, progress: Progress = silent) -> Path:
    """The release of a converted and verified job; an older one is replaced.

    GateFailed: the report has failures, or no figures for a package. The licence is stated here as the original states
    it; whether it allows publishing is `publish`'s to judge."""
    job, source = records.read(folder / "job.json", Job), records.read(folder / "source.json", Source)
    exported, report = records.read(folder / "export.json", Exported), records.read(folder / "report.json", Report)
    report = measurements.merge(report, measurements.digests(exported.packages), measurements.taken(folder))
    conversion = Conversion(
        source=source,
        recipe=job.recipe,
        family=exported.family,
        task=exported.task,
        original=exported.original,
        license=stated(source),
        packages=exported.packages,
        labels=exported.labels,
        problem=exported.problem,
        convert_key=exported.convert_key,
        verify_key=report.verify_key,
        card_key=card_key(source, report),
        protocol=report.protocol,
        psnr=least_psnr(report),
        toolchain=exported.toolchain,
        hft2ane=version("hft2ane"),
        generation=exported.generation,
        major=job.major,
        made=exported.made,
        macs=measurements.named(report.macs),
    )
    check_report(report, conversion, folder)
    with whole(folder / "release") as release:
        copy(small_files(source.files), folder / "source", release)
        for package in exported.packages:
            progress(f"link {package.file}", 0.1)
            link(folder / package.file, release / package.file)
        present(release, job, conversion, report, exported.audit, progress)
        sums(release, {}, progress)
    records.write(folder / "report.json", report)
    progress("card", 1.0)
    return folder / "release"


def make(folder: Path, progress: Progress = silent) -> Path:
    """`refresh` for a job whose packages are published and stay, else `write`."""
    job = records.read(folder / "job.json", Job)
    return refresh(folder, progress) if job.action in ("card", "verify") else write(folder, progress)


def refresh(folder: Path, progress: Progress = silent) -> Path:
    """The release of an update without new packages, from previous/ (what is published) and a fresh source.json.

    Its figures are those of previous/, or those just measured. It has no packages; SHA256SUMS carries their lines over.
    What they were made from stays as it was recorded."""
    job, fresh = records.read(folder / "job.json", Job), records.read(folder / "source.json", Source)
    previous = folder / "previous"
    old = records.read(previous / "conversion.json", Conversion)
    published = records.read(previous / "reports" / "report.json", Report)
    report = records.read(folder / "report.json", Report) if job.action == "verify" else published
    macs = [*published.macs, *job.macs, *measurements.taken(folder)]
    report = measurements.merge(report, measurements.digests(old.packages), macs)
    audit = records.read(previous / "reports" / "ranges.json", Audit)
    check_report(report, old, previous)
    conversion = replace(
        old,
        source=replace(old.source, card=fresh.card, files=merge(old.source.files, fresh.files)),
        license=stated(fresh),
        verify_key=report.verify_key,
        card_key=card_key(fresh, report),
        protocol=report.protocol,
        psnr=least_psnr(report),
        major=job.major,
        retired=job.retired,
        macs=measurements.named(report.macs),
    )
    with whole(folder / "release") as release:
        copy(small_files(layout.shaping(old.source.files)), previous, release)
        copy(small_files(layout.legal(fresh.files)), folder / "source", release)
        present(release, job, conversion, report, audit, progress)
        sums(release, package_sums(previous / SUMS, conversion), progress)
    records.write(folder / "report.json", report)
    progress("card", 1.0)
    return folder / "release"


def stated(source: Source) -> str:
    """The Hub's own word where the original names no licence is `unknown`."""
    return (source.card.license or UNKNOWN).lower()


def card_key(source: Source, report: Report) -> str:
    return keys.card_key(source.card, layout.legal(source.files), report.verify_key, keys.presentation_digest())


def merge(old: Sequence[RemoteFile], fresh: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """What the packages were made from, as recorded then, and the card and licence files as they are now."""
    shaping = layout.shaping(fresh)
    merged = [*layout.shaping(old), *(file for file in fresh if file not in shaping)]
    return tuple(sorted(merged, key=lambda file: file.path))


def check_report(report: Report, conversion: Conversion, folder: Path) -> None:
    """A card states figures; without passing ones there is none to write."""
    if report.failures:
        raise GateFailed(f"{folder.name}: {report.failures[0]}; nothing is released below its gate")
    for what in bars(conversion.packages):
        if not any(bar.what == what and bar.measures for bar in report.fidelity):
            raise GateFailed(f"{folder.name}: the report has no figures for {what}; run `hft2ane verify` on the folder")


def present(release: Path, job: Job, conversion: Conversion, report: Report, audit: Audit, progress: Progress) -> None:
    """Everything of the release that is made from records: plots, card, conversion.json, the reports."""
    progress("draw the plots", 0.3)
    artefacts = tuple(bar for bar in report.fidelity if not bar.is_rewrite)
    disk.write_bytes(release / PSNR, plot_psnr(artefacts, report.protocol))
    if len(variants := sized(conversion, report)) > 1:
        disk.write_bytes(release / SIZES, plot_sizes(variants, report.protocol))
    disk.write_bytes(release / HEADROOM, plot_headroom(audit))
    progress("write the card", 0.5)
    records.write(release / "reports" / "report.json", report)
    records.write(release / "reports" / "ranges.json", audit)
    records.write(release / "conversion.json", conversion)
    disk.write_bytes(release / "README.md", readme(release, job, conversion, report, audit).encode())
