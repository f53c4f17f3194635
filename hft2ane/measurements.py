"""Measurements of Macs: files that people contribute, one a release and Mac, and how they get into its report.

`measurements/<organization>--<name>/<chip>-<build>.json`. They come from strangers: what is read is checked in full
before anything is made of it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hft2ane import keys, records
from hft2ane.errors import BadInput
from hft2ane.records.fidelity import CAP
from hft2ane.records.lint import Placed
from hft2ane.records.mac import ENGINE, UNITS, Latency, Mac, Measurement, Unit
from hft2ane.records.package import Exported, Package
from hft2ane.records.recipe import VARIANTS
from hft2ane.records.release import Conversion, Report

FOLDER = Path("measurements")  # of a checkout
LARGEST = 2_000_000  # bytes of one file
ROUNDS = 20  # the fewest that a latency is taken of
ELSEWHERE = "Core ML on a Mac: its own results, share of operations on the Neural Engine, latency, memory"
BACKEND = "coreml {}"

# What a word of a measurement may be; cards and tables show them.
CHIP = re.compile(r"Apple [A-Z]\d{1,2}( (Pro|Max|Ultra))?( \(Virtual\))?")
MODEL = re.compile(r"[A-Za-z]{3,20}\d{1,2},\d{1,2}")
MACOS = re.compile(r"\d{2}(\.\d{1,2}){1,2}")
BUILD = re.compile(r"\d{2}[A-Z]\d{1,7}[a-z]?")  # `24F74`, `25A5279m` of a beta, `22F770820d` of a security response
VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,40}")
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{64}")
FUNCTION = re.compile(r"main|tokens_\d{1,5}")
WHAT = re.compile(rf"({'|'.join(VARIANTS)})( (encoder|decoder))?")


def place(measurement: Measurement) -> Path:
    """Where its file is, below `measurements/`."""
    return Path(measurement.repo.replace("/", "--")) / name(measurement.mac)


def name(mac: Mac) -> str:
    """`apple-m2-pro-24F74.json`"""
    chip = re.sub(r"[^a-z0-9]+", "-", mac.chip.lower()).strip("-")
    return f"{chip}-{mac.build}.json"


def read_all(folder: Path) -> list[Measurement]:
    """All of them, those of one release together. BadInput: everything that is wrong with any of them."""
    found, wrong = by_repo(folder)
    if wrong:
        raise BadInput("\n  ".join([f"{len(wrong)} of the files in {folder} are no measurements:", *wrong]))
    return sorted((one for several in found.values() for one in several), key=order)


def by_repo(folder: Path) -> tuple[dict[str, list[Measurement]], list[str]]:
    """Those that are sound, and what is wrong with the others, in words: one of them stops no night."""
    found: dict[str, list[Measurement]] = {}
    wrong = []
    for path in sorted(folder.glob("*/*")):
        try:
            one = read(path, folder)
        except BadInput as err:
            wrong.append(str(err))
        else:
            found.setdefault(one.repo, []).append(one)
    return found, wrong


def read(path: Path, folder: Path) -> Measurement:
    """BadInput: it is not what `hft2ane measure` writes, or not at its place below `folder`."""
    if path.is_symlink() or not path.is_file() or path.suffix != ".json":
        raise BadInput(f"{path}: is no JSON file")
    if path.stat().st_size > LARGEST:
        raise BadInput(f"{path}: has more than {LARGEST / 1e6:g} MB")
    found = records.parse(path.read_bytes(), Measurement, str(path))
    wrong = list(faults(found))
    if not wrong and path.relative_to(folder) != place(found):
        wrong = [f"belongs at {folder / place(found)}"]
    if wrong:
        raise BadInput("; ".join([f"{path}: {wrong[0]}", *wrong[1:]]))
    return found


def faults(m: Measurement) -> Iterator[str]:
    """What cannot be true of a measurement, in words."""
    words = (
        ("repo", m.repo, REPO),
        ("mac.chip", m.mac.chip, CHIP),
        ("mac.model", m.mac.model, MODEL),
        ("mac.macos", m.mac.macos, MACOS),
        ("mac.build", m.mac.build, BUILD),
        ("hft2ane", m.hft2ane, VERSION),
        ("coremltools", m.coremltools, VERSION),
        ("python", m.python, VERSION),
    )
    for field, value, pattern in words:
        if not pattern.fullmatch(value):
            yield f"{field} is {value[:60]!r}"
    if not 2**30 <= m.mac.memory <= 2**42:
        yield f"mac.memory is {m.mac.memory}"
    if m.protocol != keys.PROTOCOL:
        yield f"protocol is {m.protocol[:60]!r}, figures of today are of {keys.PROTOCOL}"
    if not m.packages or not all(WHAT.fullmatch(what) and DIGEST.fullmatch(of) for what, of in m.packages.items()):
        yield "packages are not digests by variant"
    if not m.units or len(set(m.units)) != len(m.units):
        yield "units are none, or one of them twice"
    if not m.fidelity and not m.latency and not m.unfinished:
        yield "nothing is measured"
    if m.mac.virtual and {*m.units} - {"CPU_ONLY"}:
        yield "a virtual Mac has no Neural Engine, and no GPU of a Mac's"
    yield from wrong_fidelity(m)
    yield from wrong_latency(m)
    yield from wrong_residency(m)
    for each in m.unfinished:
        if each.variant not in {*m.packages, ""} or each.unit not in {*m.units, ""}:
            yield f"unfinished: {each.variant} on {each.unit} is of nothing here"
    for text in prose(m):
        if len(text) > 600 or not text.isprintable() or re.search(r"/(Users|home|private|var)/", text):
            yield f"a text is long, or of several lines, or names folders of a machine: {text[:60]!r}"
    if not math.isfinite(m.seconds) or m.seconds < 0:
        yield f"seconds is {m.seconds}"


def wrong_fidelity(m: Measurement) -> Iterator[str]:
    bars = {(what, BACKEND.format(unit)) for what in m.packages for unit in m.units}
    seen = [(bar.what, bar.backend) for bar in m.fidelity]
    if not {*seen} <= bars or len({*seen}) != len(seen):
        yield "fidelity has a bar twice, or one of another package or unit"
    for bar in m.fidelity:
        figures = (bar.psnr, bar.psnr_min, bar.psnr_median)
        if not all(0 <= value <= CAP for value in (bar.gate, *figures)):
            yield f"fidelity of {bar.what}, {bar.backend}: PSNR is none from 0 to {CAP:g} dB"
        if not bar.measures or bar.psnr_min != min(each.psnr_min for each in bar.measures):
            yield f"fidelity of {bar.what}, {bar.backend}: psnr_min is not the least of its measures"
        for each in bar.measures:
            if not all(0 <= value <= CAP for value in (each.psnr, each.psnr_min, each.psnr_median)):
                yield f"fidelity of {bar.what}, {bar.backend}, {each.output[:40]!r}: PSNR is none from 0 to {CAP:g} dB"
            if each.rows < 1 or each.length < 1 or not -1 <= each.cosine_min <= 1.000001:
                yield f"fidelity of {bar.what}, {bar.backend}, {each.output[:40]!r}: rows, length or cosine"


def wrong_latency(m: Measurement) -> Iterator[str]:
    seen = [(each.variant, each.function, each.unit) for each in m.latency]
    if len({*seen}) != len(seen):
        yield "latency has a function twice on one unit"
    for each in m.latency:
        of = f"latency of {each.variant[:40]}, {each.function[:40]!r}, {each.unit}"
        if each.variant not in m.packages or each.unit not in m.units or not FUNCTION.fullmatch(each.function):
            yield f"{of}: of nothing here"
        if each.rounds < ROUNDS or each.warm_up < 1:
            yield f"{of}: {each.rounds} rounds after {each.warm_up}, at least {ROUNDS} after 1 are asked for"
        if not 0 < each.least_ms <= each.median_ms <= each.p90_ms < 1e6:
            yield f"{of}: its times are not least ≤ median ≤ p90"
        if not all(0 <= value < 1e5 for value in (each.compile_s, each.load_s, each.reload_s)):
            yield f"{of}: its seconds are impossible"
        if not 0 < each.before <= each.peak <= m.mac.memory * 4 or not 0 <= (each.footprint or 0) <= m.mac.memory * 4:
            yield f"{of}: its memory is impossible"


def wrong_residency(m: Measurement) -> Iterator[str]:
    seen = [each.variant for each in m.residency]
    if not {*seen} <= m.packages.keys() or len({*seen}) != len(seen):
        yield "residency is of another package, or of one twice"
    for each in m.residency:
        for placed in each.placed:
            known = placed.measured
            shares = [placed.share_of_ops, placed.share_of_work]
            shares += [known.share_of_ops, known.share_of_work, known.share_of_cost] if known else []
            if not all(sums_up(share.values()) for share in shares):
                yield f"residency of {each.variant}: shares are not parts of a whole"
            if known and not 0 < known.ops <= placed.ops:
                yield f"residency of {each.variant}: the plan knows {known.ops} of {placed.ops} operations"
        if any(off.count < 1 or not 0 <= (off.cost or 0) <= 1 or off.measured == "ane" for off in each.off):
            yield f"residency of {each.variant}: what is off the engine"


def sums_up(shares: Iterable[float]) -> bool:
    values = list(shares)
    return all(0 <= value <= 1 for value in values) and (not any(values) or abs(sum(values) - 1) < 1e-3)


def prose(m: Measurement) -> Iterator[str]:
    """Everything of it that is a text of no fixed form."""
    yield from (*m.failures, *m.not_measured)
    yield from (each.why for each in m.unfinished)
    for bar in m.fidelity:
        yield from (text for each in bar.measures for text in (each.output, each.inputs, each.worst))
    for each in m.residency:
        yield from (text for off in each.off for text in (off.function, off.type, off.layer, off.why))
        yield from (text for row in each.calibration for text in (row.rule, row.type))
        yield from (placed.function for placed in each.placed)
    yield from (text for each in m.greedy for text in (each.what, each.backend))


# ---- into a report


def order(m: Measurement) -> tuple[str, str, tuple[int, ...], str]:
    return m.repo, m.mac.chip, tuple(int(part) for part in re.findall(r"\d+", m.mac.macos)), m.mac.build


def digests(packages: Iterable[Package]) -> dict[str, str]:
    return {each.what: each.digest for each in packages}


def fitting(found: Iterable[Measurement], packages: Mapping[str, str]) -> dict[str, Measurement]:
    """Those of exactly these packages, taken as figures are today, by the Mac; of one Mac the last."""
    fit = [m for m in found if m.packages == packages and m.protocol == keys.PROTOCOL]
    return {str(m.mac): m for m in sorted(fit, key=order)}


def named(found: Iterable[Measurement]) -> dict[str, str]:
    """Their digests, by the Mac."""
    return {str(m.mac): keys.measurement_digest(m) for m in found}


def named_all(found: Iterable[Measurement]) -> dict[str, str]:
    """The same of any packages."""
    return {str(place(m)): keys.measurement_digest(m) for m in found}


def taken(folder: Path) -> list[Measurement]:
    """Those that are in a job's folder."""
    return [records.read(path, Measurement) for path in sorted((folder / "measurements").glob("*.json"))]


def merge(report: Report, packages: Mapping[str, str], found: Sequence[Measurement]) -> Report:
    """The report with those of the measurements that are of its packages, in place of older ones of the same Macs."""
    macs = fitting([*report.macs, *found], packages)
    if not macs:
        return report
    missing = [line for line in report.not_measured if line != ELSEWHERE]
    missing += [line for m in macs.values() for line in told(m) if line not in missing]
    return replace(
        report,
        verify_key=keys.verify_key(packages, report.protocol, keys.BACKEND, named(macs.values())),
        macs=tuple(macs.values()),
        not_measured=tuple(missing),
    )


def told(m: Measurement) -> Iterator[str]:
    """In words, what is not in a measurement."""
    for line in m.not_measured:
        yield f"on {m.mac}: {line}"
    for each in m.unfinished:
        of = " ".join(filter(None, (each.variant, each.function)))
        yield f"on {m.mac}: {each.doing}" + (f" of {of}" if of else "") + f": {each.why}"


def merge_into(folder: Path, found: Sequence[Measurement]) -> Report:
    """report.json of a job's folder, with those that are of its packages. BadInput: none is."""
    report = records.read(folder / "report.json", Report)
    exported = records.read(folder / "export.json", Exported)
    packages = digests(exported.packages)
    if not fitting(found, packages):
        raise BadInput(f"none of the {len(found)} measurements is of the packages in {folder}, by their digests")
    merged = merge(report, packages, found)
    records.write(folder / "report.json", merged)
    return merged


def news(released: Conversion, found: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """Those of a release that its report does not have, or not as they are now."""
    now = fitting(found, digests(released.packages))
    return tuple(m for mac, m in now.items() if released.macs.get(mac) != keys.measurement_digest(m))


# ---- the table of chips and systems

COLUMNS = (
    "Mac",
    "macOS",
    "Release",
    "Package",
    "Function",
    "On the engine",
    "Of the cost",
    "PSNR there, dB",
    *(f"{unit}, ms" for unit in UNITS),
    "First load, s",
    "Second, s",
    "Peak, MB",
)


def rows(m: Measurement) -> Iterator[tuple[str, ...]]:
    """One for each function of each package. PSNR, loads and memory are those of the unit that an app asks for that
    wants the engine, or of the first where there is none."""
    unit: Unit = ENGINE if ENGINE in m.units else m.units[0]
    taken = {(each.variant, each.function, each.unit): each for each in m.latency}
    bars = {(bar.what, bar.backend): bar for bar in m.fidelity}
    placed = {(each.variant, p.function): p for each in m.residency for p in each.placed}
    failed = {(each.variant, each.function, each.unit) for each in m.unfinished if each.doing == "load and time"}
    for variant, function in dict.fromkeys((v, f) for v, f, _ in (*taken, *failed) if v):
        bar = bars.get((variant, BACKEND.format(unit)))
        least = min((each.psnr_min for each in bar.measures), default=None) if bar else None
        one = taken.get((variant, function, unit))
        times = (
            "did not finish" if (variant, function, each) in failed else time(taken.get((variant, function, each)))
            for each in UNITS
        )
        yield (
            m.mac.chip,
            f"{m.mac.macos} ({m.mac.build})",
            m.repo,
            variant,
            function,
            *on_engine(placed.get((variant, function))),
            "" if least is None else f"{math.floor(least * 10) / 10:.1f}",
            *times,
            f"{one.load_s:.1f}" if one else "",
            f"{one.reload_s:.1f}" if one else "",
            f"{(one.footprint or one.peak) / 1e6:.0f}" if one else "",
        )


def time(taken: Latency | None) -> str:
    return f"{taken.median_ms:.2f}" if taken else ""


def on_engine(placed: Placed | None) -> tuple[str, str]:
    """Shares of the operations and of the cost, rounded down so that 100 % means all."""
    if placed is None or placed.measured is None:
        return "", ""
    shares = (placed.measured.share_of_ops, placed.measured.share_of_cost)
    ops, cost = (f"{math.floor(of.get('ane', 0.0) * 1000) / 10:.1f} %" if of else "" for of in shares)
    return ops, cost


def table(found: Iterable[Measurement]) -> str:
    """In Markdown."""
    right = COLUMNS.index("On the engine")
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{':--|' * right}{'--:|' * (len(COLUMNS) - right)}",
        *(f"| {' | '.join(row)} |" for m in found for row in rows(m)),
    ]
    return "\n".join(lines)
