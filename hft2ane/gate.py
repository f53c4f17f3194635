"""The gate: what may be published, by its report, its licence, and the last version of it."""

import math
from pathlib import Path

from hft2ane import interface, keys, layout, licenses, measurements, records
from hft2ane.blobs import digest
from hft2ane.errors import BadInput, GateFailed, LicenseError, PublishError
from hft2ane.records.job import Job
from hft2ane.records.package import bars, named
from hft2ane.records.release import Conversion, Report
from hft2ane.release import RECORD, REPORT, Release


def check(folder: Path, job: Job) -> Conversion:
    """The record of this folder's release. GateFailed, LicenseError: it may not be published."""
    if not (folder / REPORT).is_file():
        raise GateFailed(f"{folder} has no {REPORT}: verify it before it is published")
    report = records.read(folder / REPORT, Report)
    conversion = records.read(folder / "release" / RECORD, Conversion)
    if report.failures:
        raise GateFailed(f"{job.id} is not published: {'; '.join(report.failures)}")
    if report.verify_key != conversion.verify_key:
        raise GateFailed(f"{folder}: report.json is about another build than {RECORD}: verify and make the card again")
    figures = {bar.what for bar in report.fidelity}
    for what in bars(conversion.packages):
        if what not in figures:
            raise GateFailed(f"{job.id} is not published: report.json has no figure for {what}")
    for bar in report.fidelity:
        gate = max(bar.gate, job.gates.of(bar.what))
        if not bar.psnr_min >= gate:  # NaN is below every gate
            raise GateFailed(f"{job.id} is not published: {bar.what} has {bar.psnr_min} dB, the gate is {gate}")
    source = conversion.source
    if licenses.check(source.card.license, job.license, source.id, layout.legal(source.files)) != conversion.license:
        raise LicenseError(f"{job.id}: {RECORD} says {conversion.license!r}, its source another: make the card again")
    return conversion


def match(folder: Path, job: Job, conversion: Conversion, release: Release) -> None:
    """PublishError: the release is not what job.json asks for, or shows another report than the one that was judged."""
    source = conversion.source
    commit = source.commit if job.action in ("card", "verify") else job.commit or "local"  # of the packages, which stay
    same = {
        "the original's id": source.id == job.id,
        "its commit": source.commit == commit,
        "the recipe": conversion.recipe == job.recipe,
        "the major version": conversion.major == job.major,
        f"reports/{REPORT}": release.sums.get(f"reports/{REPORT}") == digest(folder / REPORT, lfs=True),
    }
    if differ := [what for what, is_same in same.items() if not is_same]:
        raise PublishError(f"{folder}: {', '.join(differ)} in release/ not as in this folder: run card again")


def keep_interface(version: str, record: bytes, conversion: Conversion) -> None:
    """PublishError: apps that use the last version would break, and the major version is the same."""
    old = interface.read(record)
    if old is None or conversion.major == old.major + 1:
        return
    if conversion.major != old.major:
        raise PublishError(f"{version} has major version {old.major}, this release {conversion.major}: plan again")
    if broken := interface.breaks(old, interface.of(conversion)):
        raise PublishError(
            f"apps that use {version} would break ({'; '.join(broken)}): "
            f"write `major: {old.major + 1}` in the manifest if that must be"
        )


def keep_figures(version: str, record: bytes, conversion: Conversion, job: Job) -> None:
    """GateFailed: a figure of the worst row fell by more than it may since the last version, whose record this is."""
    try:
        old = records.parse(record, Conversion, version)
    except BadInput:
        return  # of another schema: its figures may mean something else
    figures = {what: (old.psnr[what], conversion.psnr[what]) for what in _comparable(old, conversion)}
    falls = {what: (was, now) for what, (was, now) in figures.items() if was - now > job.gates.fall}
    if not falls:
        return
    told = "; ".join(f"{what} has {now:.1f} dB and had {was:.1f}" for what, (was, now) in falls.items())
    enough = min(200, math.ceil(max(was - now for was, now in falls.values()) + 1))  # dB: another machine may be lower
    raise GateFailed(
        f"{job.id} is not published, it fell by more than {job.gates.fall:g} dB since {version}: {told}; "
        "`hft2ane compare OLD NEW --where` says in which layer, and if it must be, "
        f"write `gates: {{fall: {enough}}}` in the manifest"
    )


def _comparable(old: Conversion, new: Conversion) -> list[str]:
    """Of what the figures of both mean the same, and are of something that has changed.

    The same package has the same figures: if others are measured of it, those that are published were wrong."""
    if _meaning(old) != _meaning(new) or not (_evaluated(old) and _evaluated(new)):
        return []
    before = {package.what: package.digest for package in old.packages}
    changed = [package for package in new.packages if before.get(package.what, package.digest) != package.digest]
    whats = [what for package in changed for what in (named("rewrite", package.part), package.what)]
    return [what for what in dict.fromkeys(whats) if what in old.psnr and what in new.psnr]


def _meaning(record: Conversion) -> tuple[object, ...]:
    """Of what, and how, its figures were taken: those of other weights are others by some dB, and it is no fault."""
    files = {file.path: file.oid for file in layout.shaping(record.source.files)}
    return record.protocol, record.task, {*record.recipe.lengths}, files


def _evaluated(record: Conversion) -> bool:
    """Whether its figures are by the evaluator of today, which is a part of its verify key."""
    packages = measurements.digests(record.packages)
    return keys.verify_key(packages, record.protocol, keys.BACKEND, record.macs) == record.verify_key
