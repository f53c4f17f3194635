"""The card step: a job's folder -> release/, exactly the files that will be published, byte for byte.

The same records give the same bytes. The card inherits from upstream what `CardFields` holds and nothing else, and
everything that upstream wrote is escaped on its way into Markdown.
"""

import contextlib
import functools
import hashlib
import html
import io
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hft2ane import keys, layout, records
from hft2ane.errors import BadInput, GateFailed
from hft2ane.records import (
    CAP,
    LEAST_LENGTH,
    SEVERAL_OS,
    SINGLE_OS,
    SUMS,
    Audit,
    CardFields,
    Conversion,
    Exported,
    Fidelity,
    Finding,
    Function,
    Job,
    Measure,
    Package,
    Part,
    Progress,
    RemoteFile,
    Report,
    Source,
    Task,
    Tensor,
    Variant,
    silent,
)

ENGINE = "CPU_AND_NE"  # coremltools' name of the compute units that an app asks for
# What a warning of the linter means for an app. Of rules that have no words here the finding's own are shown.
WARNINGS: Mapping[str, str] = {
    "axis-limit-copy": "the scores have a last axis longer than the Neural Engine takes, so the CPU puts them into "
    "this layout at the end of each call. The network before it stays on the engine, and no number changes.",
    "last-axis-unaligned": "the Neural Engine pads rows to 32 numbers, so a length that is no multiple of 32 costs as "
    "much as the next one that is. No number changes.",
}
HEADROOM = "assets/fp16-headroom.png"
LABELS = 70  # letters that fit side by side below the headroom plot
STATES_MASK = "encoder_attention_mask"
TIGHTEST = 5  # layers that the card names; the rest is in its plot and in reports/ranges.json


@dataclass(frozen=True)
class TaskCard:
    """What a card says of a task; {n} is the size of the main output's last axis.

    `tags`: the Hub's pipeline tags for it, ours first; upstream's own choice among them wins."""

    what: str
    tags: tuple[str, ...]


TASKS: Mapping[Task, TaskCard] = {
    "feature-extraction": TaskCard("Text in, {n} numbers for every token out.", ("feature-extraction",)),
    "sentence-embedding": TaskCard(
        "Text in, one vector of {n} numbers out, for search, clustering and similarity.",
        ("sentence-similarity", "feature-extraction"),
    ),
    "fill-mask": TaskCard(
        "Text with a masked word in, a score for each of {n} vocabulary entries out.", ("fill-mask",)
    ),
    "text-classification": TaskCard(
        "{texts} in, {scores} out.", ("text-classification", "text-ranking", "zero-shot-classification")
    ),
    "token-classification": TaskCard("Text in, {scores} out, for every token.", ("token-classification",)),
    "question-answering": TaskCard(
        "A question and a passage in, the place of the answer in the passage out.", ("question-answering",)
    ),
    "next-sentence-prediction": TaskCard(
        "Two texts in, two scores out: the second follows the first, or it does not.", ("text-classification",)
    ),
    "multiple-choice": TaskCard("A question with {n} choices in, a score for each choice out.", ("multiple-choice",)),
    "replaced-token-detection": TaskCard(
        "Text in, a score for every token out: above 0 where another word seems to have been put in its place.",
        ("token-classification",),
    ),
    "text-generation": TaskCard(
        "Text in, a score for each of {n} vocabulary entries as the next token out.", ("text-generation",)
    ),
    "text2text-generation": TaskCard(
        "Text in, another text out, a token at a time: an encoder, and a decoder with {n} vocabulary entries.",
        ("text2text-generation", "summarization", "translation", "text-generation"),
    ),
}
TAGS = ("coreml", "core-ml", "ane", "apple-neural-engine", "mlpackage")  # of every card, before its precisions
PAIRS = ("question-answering", "next-sentence-prediction")
# The tag of each variant, and how its table calls it.
PRECISIONS: Mapping[Variant, tuple[str, str]] = {
    "float16": ("fp16", "float16"),
    "int8": ("int8", "int8"),
    "palettized-8": ("8-bit", "palettized-8"),
    "palettized-6": ("6-bit", "palettized-6, lossy"),
    "palettized-4": ("4-bit", "palettized-4, lossy"),
    "mixed-6": ("mixed-precision", "mixed-6, lossy"),
    "mixed-4": ("mixed-precision", "mixed-4, lossy"),
}

LOSSY = tuple(variant for variant, (_, name) in PRECISIONS.items() if name.endswith(", lossy"))

# What `tokenizers` and the Swift snippet call the inputs.
PYTHON_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
SWIFT_FIELDS = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}


UNKNOWN = "unknown"


def write(folder: Path, progress: Progress = silent) -> Path:
    """The release of a converted and verified job; an older one is replaced.

    GateFailed: the report has failures, or no figures for a package. The licence is stated here as the original states
    it; whether it allows publishing is `publish`'s to judge."""
    job, source = records.read(folder / "job.json", Job), records.read(folder / "source.json", Source)
    exported, report = records.read(folder / "export.json", Exported), records.read(folder / "report.json", Report)
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
    )
    check_report(report, conversion, folder)
    with whole(folder / "release") as release:
        copy(small_files(source.files), folder / "source", release)
        for package in exported.packages:
            progress(f"link {package.file}", 0.1)
            link(folder / package.file, release / package.file)
        present(release, job, conversion, report, exported.audit, progress)
        sums(release, {}, progress)
    progress("card", 1.0)
    return folder / "release"


def tokens_kept(release: Path, longest: int) -> int | None:
    """Tokens of a text that sentence-transformers keeps, where the package takes more of them."""
    for settings in sorted(release.glob("sentence_*_config.json")):
        kept = json.loads(settings.read_text()).get("max_seq_length")
        if isinstance(kept, int) and kept < longest:
            return kept
    return None


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
    measured = folder if job.action == "verify" else previous / "reports"
    report = records.read(measured / "report.json", Report)
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
    )
    with whole(folder / "release") as release:
        copy(small_files(layout.shaping(old.source.files)), previous, release)
        copy(small_files(layout.legal(fresh.files)), folder / "source", release)
        present(release, job, conversion, report, audit, progress)
        sums(release, package_sums(previous / SUMS, conversion), progress)
    records.write(folder / "report.json", report)
    progress("card", 1.0)
    return folder / "release"


# ---------------------------------------------------------------------------------------------- records


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
    for what in records.bars(conversion.packages):
        if not any(bar.what == what and bar.measures for bar in report.fidelity):
            raise GateFailed(f"{folder.name}: the report has no figures for {what}; run `hft2ane verify` on the folder")


def least_psnr(report: Report) -> dict[str, float]:
    """The worst figure of each bar, over everything that evaluated it."""
    least: dict[str, float] = {}
    for bar in report.fidelity:
        least[bar.what] = min(bar.psnr_min, least.get(bar.what, math.inf))
    return least


# ---------------------------------------------------------------------------------------------- the folder


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` at the end, in place of an old one, or never exists."""
    building, old = path.with_name(f".{path.name}.building"), path.with_name(f".{path.name}.old")
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        if path.exists():
            path.rename(old)
        building.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def small_files(files: Sequence[RemoteFile]) -> list[str]:
    """What is published of the original's files: not its weights, and not its card."""
    return [f.path for f in files if f.path != layout.README and not f.path.endswith((".safetensors", layout.INDEX))]


def copy(names: Sequence[str], source: Path, release: Path) -> None:
    for name in names:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, release / name)


def link(source: Path, target: Path) -> None:
    """The files of a package again, without a second copy on disk where the file system can."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)


def present(release: Path, job: Job, conversion: Conversion, report: Report, audit: Audit, progress: Progress) -> None:
    """Everything of the release that is made from records: plots, card, conversion.json, the reports."""
    progress("draw the plots", 0.3)
    plots = []
    for bar in report.fidelity:
        if not bar.is_rewrite:
            name = f"assets/psnr-{bar.what}-{bar.backend}.png".replace(" ", "-")
            records.write_bytes(release / name, plot(bar, report.protocol))
            plots.append((name, bar))
    records.write_bytes(release / HEADROOM, plot_headroom(audit))
    progress("write the card", 0.5)
    records.write(release / "reports" / "report.json", report)
    records.write(release / "reports" / "ranges.json", audit)
    records.write(release / "conversion.json", conversion)
    records.write_bytes(release / "README.md", readme(release, job, conversion, report, audit, plots).encode())


def sums(release: Path, carried: Mapping[str, str], progress: Progress) -> None:
    """SHA256SUMS over every other file, written last. `carried`: digests of files that are not here, by path."""
    digests = dict(carried)
    for file in (p for p in release.rglob("*") if p.is_file()):
        name = file.relative_to(release).as_posix()
        progress(f"digest {name}", 0.7)
        with file.open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    records.write_bytes(release / SUMS, "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode())


def package_sums(published: Path, conversion: Conversion) -> dict[str, str]:
    """The lines of a published SHA256SUMS that are files of the packages. BadInput: a package has none."""
    pairs = [line.split("  ", 1) for line in published.read_text(encoding="utf-8").splitlines()]
    files = {package.file for package in conversion.packages}
    found = {name: digest for digest, name in pairs if name.split("/")[0] in files}
    if missing := files - {name.split("/")[0] for name in found}:
        raise BadInput(f"{published} has no line for {', '.join(sorted(missing))}; publish this model in full again")
    return found


# ---------------------------------------------------------------------------------------------- the card


def readme(
    release: Path,
    job: Job,
    conversion: Conversion,
    report: Report,
    audit: Audit,
    plots: Sequence[tuple[str, Fidelity]],
) -> str:
    """The whole README.md; what the front matter says is read back by huggingface_hub as a check."""
    from huggingface_hub import ModelCard

    data = front_matter(conversion, report)
    text = f"---\n{data.to_yaml()}\n---\n\n{body(release, job, conversion, report, audit, plots)}"
    if ModelCard(text).data.to_yaml() != data.to_yaml():
        raise BadInput(f"the front matter of the card for {conversion.source.id} does not read back as it was written")
    return text


def front_matter(conversion: Conversion, report: Report) -> Any:
    """ModelCardData: what the Hub indexes. A local original has no `base_model`."""
    from huggingface_hub import EvalResult, ModelCardData

    fields, tag = conversion.source.card, pipeline_tag(conversion)
    results = [
        EvalResult(
            task_type=tag,
            dataset_type="text",
            dataset_name=f"inputs of protocol {report.protocol}",
            metric_type="psnr",
            metric_name=f"PSNR min in dB, {bar.what} package against the original, {bar.backend}, {report.protocol}",
            metric_value=bar.psnr_min,
        )
        for bar in report.fidelity
        if not bar.is_rewrite
    ]
    base = conversion.source.id if is_hub(conversion.source) else None
    return ModelCardData(
        license=conversion.license,
        language=languages(fields) or None,
        library_name="coreml",
        pipeline_tag=tag,
        base_model=base,
        base_model_relation="quantized" if base else None,
        tags=[
            *TAGS,
            *dict.fromkeys(PRECISIONS[package.variant][0] for package in conversion.packages),
            *(["retired"] if conversion.retired else []),
        ],
        model_name=short_name(conversion.source),
        eval_results=results,
    )


def languages(fields: CardFields) -> list[str]:
    """The upstream's languages that the Hub takes: ISO 639 codes and two words."""
    return [code for code in fields.language if re.fullmatch(r"[a-z]{2,3}|multilingual|code", code)]


def pipeline_tag(conversion: Conversion) -> str:
    tags, upstream = TASKS[conversion.task].tags, conversion.source.card.pipeline_tag
    return upstream if upstream in tags else tags[0]


def is_hub(source: Source) -> bool:
    return source.commit != "local" and re.fullmatch(r"([\w.-]+/)?[\w.-]+", source.id, re.A) is not None


def short_name(source: Source) -> str:
    return source.id.rstrip("/").rpartition("/")[2]


def body(
    release: Path,
    job: Job,
    conversion: Conversion,
    report: Report,
    audit: Audit,
    plots: Sequence[tuple[str, Fidelity]],
) -> str:
    """The card below its front matter, from the template."""
    source, task, parts = conversion.source, conversion.task, first_parts(conversion)
    package, function, main = answer(conversion)
    pair = takes_pairs(conversion)
    entries = main.shape[-1]
    pad = conversion.generation.pad if conversion.generation else pad_token(release)
    least = least_psnr(report)
    nearest = max(conversion.packages, key=lambda package: least[package.what])
    smaller = [p for p in conversion.packages if p.part == nearest.part and p.size < nearest.size]
    others = sorted(smaller, key=lambda p: p.size, reverse=True)
    template = environment().get_template("card.md.j2")
    return template.render(
        name=short_name(source),
        repo=job.repo,
        local=job.repo.rpartition("/")[2],
        what=saying(conversion),
        is_hub=is_hub(source),
        source=source,
        conversion=conversion,
        report=report,
        audit=audit,
        tightest=sorted(audit.layers, key=lambda r: r.headroom_bits)[:TIGHTEST],
        headroom_plot=HEADROOM,
        artefacts=[bar for bar in report.fidelity if not bar.is_rewrite],
        rewrites=[bar for bar in report.fidelity if bar.is_rewrite],
        placements=placements(conversion.packages, report),
        variants={package.file: package.what for package in conversion.packages},
        warnings=warnings(report),
        measured=any(p.measured for found in report.lint for p in found.placed),
        surprises=[row for found in report.lint for row in found.calibration if row.predicted != row.measured],
        plots=plots,
        keeps=tokens_kept(release, max(f.length for f in package.functions)),
        packages=conversion.packages,
        nearest=nearest,
        nearest_least=least[nearest.what],
        smaller=[(p, f"{p.size / nearest.size:.0%}", least[p.what]) for p in others],
        lossy=LOSSY,
        single_os=SINGLE_OS,
        several_os=SEVERAL_OS,
        shorter=shorter(function.length),
        specification=specification(conversion, report),
        evaluator=keys.BACKEND,
        functions=package.functions,
        function=function,
        parts=parts,
        writing=conversion.generation,
        own_vocabulary=own_vocabulary(release),
        several=len(package.functions) > 1,
        lengths=[function.length for function in package.functions],
        contracts=[(part, contract(each.functions, pad, task)) for part, each in parts.items()],
        main=main,
        types=any(t.name == "token_type_ids" for t in function.inputs),
        pair=pair,
        berts=joins_as_bert(release),
        choices=entries if task == "multiple-choice" else 0,
        python_fields=PYTHON_FIELDS,
        swift_fields=SWIFT_FIELDS,
        labels=() if all(re.fullmatch(r"LABEL_\d+", label) for label in conversion.labels) else conversion.labels,
        softmax=entries > 1 and conversion.problem not in ("regression", "multi_label_classification"),
        pad=pad,
        mask=mask_token(release),
        fast=(release / "tokenizer.json").is_file(),
        tools=", ".join(f"{name} {v}" for name, v in [("hft2ane", conversion.hft2ane), *conversion.toolchain.items()]),
        legal=[file.path for file in layout.legal(source.files)],
    )


def answer(conversion: Conversion) -> tuple[Package, Function, Tensor]:
    """Of the first variant: the package and function whose output is the model's answer, and that output."""
    package = list(first_parts(conversion).values())[-1]
    function = next(f for f in package.functions if f.name == package.default_function)
    main = next((t for t in function.outputs if t.name == "sentence_embedding"), function.outputs[0])
    return package, function, main


def takes_pairs(conversion: Conversion) -> bool:
    return conversion.task in PAIRS or pipeline_tag(conversion) == "text-ranking"


def saying(conversion: Conversion) -> str:
    """What goes in and what comes out, in a sentence."""
    entries = answer(conversion)[2].shape[-1]
    return TASKS[conversion.task].what.format(
        n=entries,
        texts="Two texts" if takes_pairs(conversion) else "Text",
        scores="one score" if entries == 1 else f"a score for each of {entries} labels",
    )


def shorter(length: int) -> list[int]:
    """Lengths up to this one that make a package quicker for short texts: 128 -> 32, 64, 128."""
    return [*(n for n in (length // 4, length // 2) if n >= LEAST_LENGTH), length]


def first_parts(conversion: Conversion) -> dict[Part, Package]:
    """The packages of the first variant: one, or those of an encoder and a decoder."""
    first = conversion.packages[0].variant
    return {package.part: package for package in conversion.packages if package.variant == first}


def own_vocabulary(release: Path) -> bool:
    """Whether the decoder of a pair writes ids of another vocabulary than the encoder reads."""
    config = json.loads((release / layout.CONFIG).read_bytes())
    sizes = {
        part.get("vocab_size") for part in (config.get("encoder"), config.get("decoder")) if isinstance(part, dict)
    }
    return len(sizes) > 1


def specification(conversion: Conversion, report: Report) -> list[list[str]]:
    """The rows of the first table: a label, and a cell for each package."""
    packages = conversion.packages
    compressed = any(package.variant != "float16" for package in packages)
    rows = [
        ["Precision", *(PRECISIONS[package.variant][1] for package in packages)],
        *([["Weights", *(package.weights for package in packages)]] if compressed else []),
        ["Size", *(megabytes(package.size) for package in packages)],
        ["Input length, tokens", *(", ".join(str(f.length) for f in package.functions) for package in packages)],
        ["Minimum OS", *(systems(package.minimum_os) for package in packages)],
    ]
    bars = {(bar.backend, bar.what): bar for bar in report.fidelity if not bar.is_rewrite}
    backends = list(dict.fromkeys(backend for backend, _ in bars))
    for backend in backends:
        by = f", {backend}" if len(backends) > 1 else ""
        of = [bars.get((backend, package.what)) for package in packages]
        rows.append([f"PSNR, worst row, dB ¹{by}", *(down(bar.psnr_min) if bar else "not measured" for bar in of)])
        rows.append([f"PSNR median, dB ¹{by}", *(down(bar.psnr_median) if bar else "not measured" for bar in of)])
        if any(bar and bar.top1 is not None for bar in of):
            rows.append([f"Top-1 agreement ¹{by}", *(share(bar.top1) if bar else "not measured" for bar in of)])
    return [*rows, *on_a_mac(packages, report)]


def on_a_mac(packages: Sequence[Package], report: Report) -> list[list[str]]:
    """The least share of any function, and the latency of each on what an app would ask for."""
    if not report.mac:
        return [["Neural Engine share, latency", *("not measured on this host" for _ in packages)]]
    engine = {
        found.package: min(p.measured.share_of_ops.get("ane", 0.0) for p in found.placed if p.measured)
        for found in report.lint
        if any(p.measured for p in found.placed)
    }
    unit = max((each.unit for each in report.latency), key=lambda unit: unit == ENGINE, default="")
    taken = [each for each in report.latency if each.unit == unit]
    tokens = {f.name: f.length for package in packages for f in package.functions}
    return [
        [
            "On the Neural Engine ²",
            *(share(engine.get(p.file)) if p.file in engine else "not measured" for p in packages),
        ],
        [
            f"Latency ², {unit}",
            *(
                ", ".join(
                    f"{each.median_ms:.2f} ms ({tokens[each.function]} tokens)"
                    for each in taken
                    if each.variant == p.what
                )
                or "not measured"
                for p in packages
            ),
        ],
    ]


@dataclass(frozen=True)
class Placement:
    """What is predicted for some functions of some packages, as it is shown."""

    variants: Sequence[str]
    functions: Sequence[str]
    ops: int
    of_ops: str
    of_work: str


def placements(packages: Sequence[Package], report: Report) -> list[Placement]:
    """A row for what differs: lengths and variants mostly have the same graph."""
    variants = {package.file: package.what for package in packages}
    rows: dict[tuple[tuple[str, ...], int, str, str], list[str]] = {}
    for found in report.lint:
        own: dict[tuple[int, str, str], list[str]] = {}
        for p in found.placed:
            figures = (p.ops, share(p.share_of_ops.get("ane", 0.0)), share(p.share_of_work.get("ane", 0.0)))
            own.setdefault(figures, []).append(p.function)
        for figures, functions in own.items():
            rows.setdefault((tuple(functions), *figures), []).append(variants[found.package])
    return [Placement(names, *figures) for figures, names in rows.items()]


@dataclass(frozen=True)
class Warned:
    """A rule that some packages break, in `count` operations of the types named, and what that means for an app."""

    rule: str
    text: str
    count: int
    types: str


def warnings(report: Report) -> list[Warned]:
    """One a rule, whichever package and function it is in."""
    found: dict[str, list[Finding]] = {}
    for finding in (finding for each in report.lint for finding in each.findings if finding.severity == "warning"):
        found.setdefault(finding.rule, []).append(finding)
    return [
        Warned(
            rule,
            WARNINGS.get(rule, each[0].message),
            sum(finding.count for finding in each),
            ", ".join(dict.fromkeys(finding.type for finding in each if finding.type)),
        )
        for rule, each in found.items()
    ]


@dataclass(frozen=True)
class Port:
    """A row of the table of inputs and outputs."""

    way: Literal["in", "out"]
    name: str
    shape: str
    dtype: str
    about: str
    padding: str


def contract(functions: Sequence[Function], pad: int, task: Task) -> list[Port]:
    """What goes in and out, the same for all functions but for the length, which is L where they differ."""
    padding = {"input_ids": str(pad), **dict.fromkeys(("attention_mask", "token_type_ids", STATES_MASK), "0")}
    inputs = zip(*(function.inputs for function in functions), strict=True)
    outputs = zip(*(function.outputs for function in functions), strict=True)

    def ignored(output: Tensor) -> bool:
        return records.per_token(output.name, len(output.shape), task)

    return [
        *(port("in", same, padding.get(same[0].name, "any")) for same in inputs),
        *(port("out", same, "ignore" if ignored(same[0]) else "–") for same in outputs),
    ]


def port(way: Literal["in", "out"], same: Sequence[Tensor], padding: str) -> Port:
    """One tensor of every function as a row. `about` is the same in all of them."""
    sizes = zip(*(t.shape for t in same), strict=True)
    shape = "×".join(str(size[0]) if len(set(size)) == 1 else "L" for size in sizes)
    return Port(way, same[0].name, shape, same[0].dtype, same[0].about, padding)


def pad_token(release: Path) -> int:
    """The id at padding. Without one in config.json any will do, because attention_mask is 0 there."""
    pad = json.loads((release / layout.CONFIG).read_bytes()).get("pad_token_id")
    return pad if isinstance(pad, int) else 0


def joins_as_bert(release: Path) -> bool:
    """Whether two texts have one closing token between them, and token type 1 after it. RoBERTa's have two, and 0."""
    path = release / "tokenizer.json"
    processor = json.loads(path.read_bytes()).get("post_processor") if path.is_file() else {"type": "BertProcessing"}
    match processor:
        case {"type": "BertProcessing"}:
            return True
        case {"type": "TemplateProcessing", "pair": [_, {"Sequence": _}, _, {"Sequence": {"type_id": 1}}, _]}:
            return True
    return False


def mask_token(release: Path) -> str:
    """What stands for a masked word: as the tokenizer's files name it, else BERT's."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (release / name).is_file():
            named = json.loads((release / name).read_bytes()).get("mask_token")
            token = named.get("content") if isinstance(named, dict) else named
            if isinstance(token, str):
                return token
    return "[MASK]"


# ---------------------------------------------------------------------------------------------- Markdown


@functools.cache
def environment() -> Environment:
    """Templates in which every value is escaped that no filter has made Markdown; one that is not there fails."""
    templates = Environment(
        loader=PackageLoader("hft2ane"),
        autoescape=True,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (by_output, row, code, plain, shell, literal, url, down, share, cosine, systems)
    templates.filters.update({each.__name__: each for each in filters})
    return templates


def clean(text: str) -> str:
    """One line without control characters, which could end a cell, a span or a block."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape(value: object) -> Markup:
    """Any value as plain text in Markdown."""
    if isinstance(value, Markup):
        return value
    if value is None:
        raise TypeError("a card never shows a value that is not there")
    text = re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", html.escape(clean(str(value)), quote=False))
    return Markup(re.sub(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[-+=]))", r"\1\\", text))  # no list, no underline


def code(value: object) -> Markup:
    """As code, also in a table cell: in backticks, or where those cannot hold it, in HTML with entities only."""
    text = clean(str(value))
    if re.search(r"[`|\\]", text) or not text:
        return Markup("<code>" + re.sub(r"[!-/:-@\[-`{-~]", lambda m: f"&#{ord(m[0])};", text) + "</code>")
    return Markup(f"`{text}`")


def by_output(measures: Sequence[Measure]) -> list[Measure]:
    """In the order in which one reads them: output, length, then inputs as they were measured."""
    outputs = [m.output for m in measures]
    return sorted(measures, key=lambda m: (outputs.index(m.output), m.length))


def row(cells: Sequence[object]) -> Markup:
    """A table's row."""
    return Markup("| " + " | ".join(map(escape, cells)) + " |")


def plain(value: object) -> Markup:
    """As it is, inside code. BadInput: it has more than the characters of a name."""
    if not re.fullmatch(r"[\w.-]+", str(value)):
        raise BadInput(
            f"{str(value)[:200]!r} cannot stand in the card's code: a name has letters, digits, '.', '_', '-'"
        )
    return Markup(str(value))


def shell(value: object) -> Markup:
    """As one word of a shell line."""
    return Markup(shlex.quote(clean(str(value))))


def literal(value: object) -> Markup:
    """As a string of Python or Swift."""
    return Markup(json.dumps(clean(str(value)), ensure_ascii=False))


def url(value: object) -> Markup:
    """As (part of) a link's target."""
    return Markup(quote(str(value), safe="/"))


def down(value: float) -> str:
    """A figure in dB, rounded down."""
    return "equal" if value >= CAP else f"{math.floor(value * 10 + 1e-6) / 10:.1f}"


def share(value: float | None) -> str:
    """Rounded down, so that 100% means all. None: the output is not logits."""
    return "–" if value is None else f"{math.floor(value * 1e4 + 1e-6) / 100:.6g}%"


def cosine(value: float) -> str:
    """Rounded down."""
    return f"{math.floor(value * 1e6 + 1e-3) / 1e6:.6f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def systems(minimum: str) -> str:
    """`iOS 16 / macOS 13` -> `iOS 16, macOS 13`."""
    return minimum.replace(" / ", ", ")


# ---------------------------------------------------------------------------------------------- plots

GREY, GATE = "#7a828c", "#d1495b"  # readable on white and on near-black: the image has no background
COLOURS = ("#3b82f6", "#e08a1e", "#2ca25f", "#a06cd5", "#d45d9e", "#17a2b8")
HEADROOM_KINDS = ("linear", "sum", "squares", "scores", "activation")  # each a line; the rest shares one


def plot(bar: Fidelity, protocol: str) -> bytes:
    """PNG: for every output and length a line, on it for every set of inputs the worst row and the median."""
    lines = list(dict.fromkeys((m.output, m.length) for m in by_output(bar.measures)))
    kinds = list(dict.fromkeys(m.inputs for m in bar.measures))
    with drawing(9, 1.9 + len(lines) * (0.35 + 0.13 * len(kinds))) as (figure, axes, image):
        for n, kind in enumerate(kinds):
            measures = [m for m in bar.measures if m.inputs == kind]
            heights = [
                lines.index((m.output, m.length)) + (n - (len(kinds) - 1) / 2) * 0.8 / len(kinds) for m in measures
            ]
            least, middle = [m.psnr_min for m in measures], [m.psnr_median for m in measures]
            colour = COLOURS[n % len(COLOURS)]
            axes.hlines(heights, least, middle, color=colour, linewidth=1.5, alpha=0.6)
            axes.scatter(middle, heights, marker="|", s=60, color=colour, linewidths=1.5)
            axes.scatter(least, heights, s=28, color=colour, label=clean(kind), zorder=3)
        axes.axvline(bar.gate, color=GATE, linestyle="--", linewidth=1.5, label=f"gate, {bar.gate:g} dB")
        axes.set_yticks(range(len(lines)), [f"{clean(output)}\n{length} tokens" for output, length in lines])
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlabel(f"PSNR in dB, {protocol}: dot = worst row, stroke = median")
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.4, columnspacing=1.4)
    return image.getvalue()


def plot_headroom(audit: Audit) -> bytes:
    """PNG: for every kind of value a line over the layers, and a cross where conditioning found too little."""
    stages = list(dict.fromkeys(stage(r.path) for r in audit.layers))
    named = [kind for kind in HEADROOM_KINDS if any(r.kind == kind for r in audit.layers)]
    with drawing(9, 4.5) as (figure, axes, image):
        for n, kind in enumerate([*named, "all else"]):
            least: dict[str, float] = {}
            for r in audit.layers:
                if r.kind == kind or (kind == "all else" and r.kind not in named):
                    least[stage(r.path)] = min(r.headroom_bits, least.get(stage(r.path), math.inf))
            line = [least.get(name, math.nan) for name in stages]
            size = 7 - 0.8 * n  # so that one shows below another
            axes.plot(line, marker="o", markersize=size, color=COLOURS[n], linewidth=size / 2, label=kind)
        for n, c in enumerate(audit.conditioned):
            label = "before conditioning" if n == 0 else None
            place = stages.index(stage(c.path))
            axes.scatter(place, c.headroom_bits_before, marker="x", s=45, color=GATE, zorder=3, label=label)
        axes.axhline(0, color=GATE, linestyle="--", linewidth=1.5, label="overflow")
        crowded = len(stages) * max(map(len, stages)) > LABELS
        axes.set_xticks(range(len(stages)), stages, rotation=90 if crowded else 0)
        axes.set_ylabel("bits of headroom to 65504")
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
        axes.tick_params(axis="x", length=0)
        figure.legend(loc="outside upper left", ncols=4, frameon=False, handletextpad=0.4, columnspacing=1.4)
    return image.getvalue()


def stage(path: str) -> str:
    """`encoder.blocks.3.attend.q` -> `blocks 3`; `encoder.norm` -> `norm`; the model's own operations -> `model`; a
    pair's `decoder.blocks.3.attend.q` -> `decoder blocks 3`."""
    numbered = re.search(r"(\w+)\.(\d+)(?:\.|$)", path)
    name = f"{numbered[1]} {numbered[2]}" if numbered else path.rpartition(".")[2] or "model"
    return f"decoder {name}" if path.startswith("decoder.") else name


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any, io.BytesIO]]:
    """A figure, in inches, with one diagram; at the end it is in the BytesIO as PNG, the same bytes every time."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
            matplotlib.rcParams[part] = GREY
        matplotlib.rcParams["font.size"], matplotlib.rcParams["text.parse_math"] = 12, False
        figure, image = Figure(figsize=(width, height), dpi=160, layout="constrained"), io.BytesIO()
        axes = figure.subplots()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        yield figure, axes, image
        figure.savefig(image, format="png", transparent=True, metadata={"Software": None})
