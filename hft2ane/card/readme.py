"""The README.md of a release: its front matter, and its body from the template with all that this is given."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hft2ane import keys, layout
from hft2ane.card.markdown import environment
from hft2ane.card.original import joins_as_bert
from hft2ane.card.plots import HEADROOM, PSNR, SIZES
from hft2ane.card.tables import (
    STATES_MASK,
    accuracy,
    contract,
    least_psnr,
    peaks,
    placements,
    ranges,
    specification,
    warnings,
    worst,
)
from hft2ane.card.words import LOSSY, PAIRS, PRECISIONS, PYTHON_FIELDS, SWIFT_TRANSFORMERS, TAGS, TASKS
from hft2ane.errors import BadInput
from hft2ane.records.job import Job
from hft2ane.records.package import SEVERAL_OS, SINGLE_OS, Audit, Function, Package, Part, Tensor
from hft2ane.records.recipe import LEAST_LENGTH, Variant
from hft2ane.records.release import Conversion, Report
from hft2ane.records.source import CardFields, Source
from hft2ane.runtime.settings import Settings, read_settings

TIGHTEST = 5  # layers that the card names; the rest is in its plot and in reports/ranges.json


def readme(release: Path, job: Job, conversion: Conversion, report: Report, audit: Audit) -> str:
    """The whole README.md; what the front matter says is read back by huggingface_hub as a check."""
    from huggingface_hub import ModelCard

    data = front_matter(conversion, report)
    text = f"---\n{data.to_yaml()}\n---\n\n{body(release, job, conversion, report, audit)}"
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
            metric_name=f"PSNR of the worst row in dB, {bar.what} package against the original, "
            f"{bar.backend}, {report.protocol}",
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


def body(release: Path, job: Job, conversion: Conversion, report: Report, audit: Audit) -> str:
    """The card below its front matter, from the template."""
    source, task, parts = conversion.source, conversion.task, first_parts(conversion)
    package, function, main = answer(conversion)
    pair = takes_pairs(conversion)
    entries = main.shape[-1]
    labels = () if all(re.fullmatch(r"LABEL_\d+", label) for label in conversion.labels) else conversion.labels
    settings = read_settings(release, task == "sentence-embedding")
    pad = conversion.generation.pad if conversion.generation else settings.pad
    longest = max(f.length for f in package.functions)
    least = least_psnr(report)
    nearest = max(conversion.packages, key=lambda package: least[package.what])
    same = [p for p in conversion.packages if p.part == nearest.part]
    others = sorted((p for p in same if p.size < nearest.size), key=lambda p: p.size, reverse=True)
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
        planned=any(p.measured for mac in report.macs for found in mac.residency for p in found.placed),
        off=[(m.mac, found.variant, each) for m in report.macs for found in m.residency for each in found.off],
        timings=[(m, each, accuracy(m, each)) for m in report.macs for each in m.latency],
        psnr_plot=PSNR,
        sizes_plot=SIZES if len({p.variant for p in conversion.packages}) > 1 else None,
        worst=worst(report),
        peaks=peaks(report),
        keeps=settings.most if settings.most is not None and settings.most < longest else None,
        packages=conversion.packages,
        nearest=nearest,
        nearest_least=least[nearest.what],
        smaller=[(p, f"{p.size / nearest.size:.0%}", least[p.what], outdone(p, same, least)) for p in others],
        unpublished=job.repo.startswith(f"{layout.NOBODY}/"),
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
        own_vocabulary=settings.own_vocabulary,
        several=len(package.functions) > 1,
        lengths=[function.length for function in package.functions],
        contracts=[
            (part, contract(each, pad, task, ranges(settings, part), peaks(report))) for part, each in parts.items()
        ],
        main=main,
        types=any(t.name == "token_type_ids" for t in function.inputs),
        pair=pair,
        berts=joins_as_bert(release),
        choices=entries if task == "multiple-choice" else 0,
        entries=entries,
        problem=conversion.problem,
        python_fields=PYTHON_FIELDS,
        swift_transformers=SWIFT_TRANSFORMERS,
        labels=labels,
        labelled=bool(labels) and task in ("text-classification", "token-classification"),
        softmax=entries > 1 and conversion.problem not in ("regression", "multi_label_classification"),
        pad=pad,
        mask=settings.mask,
        loads=loads(release, conversion, settings),
        fast=(release / "tokenizer.json").is_file(),
        tools=", ".join(f"{name} {v}" for name, v in [("hft2ane", conversion.hft2ane), *conversion.toolchain.items()]),
        legal=[file.path for file in layout.legal(source.files)],
    )


def outdone(package: Package, others: Sequence[Package], least: Mapping[str, float]) -> Variant | None:
    """The variant that is smaller and nearer to the original, if there is one. `least`: PSNR by package."""
    better = [p for p in others if p.size < package.size and least[p.what] > least[package.what]]
    return max(better, key=lambda p: least[p.what]).variant if better else None


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


def loads(release: Path, conversion: Conversion, settings: Settings) -> bool:
    """Whether `hft2ane.load` does all for this release: it has a tokenizer for what is read and written, and no input
    is of another model."""
    if not (release / "tokenizer.json").is_file() or settings.own_vocabulary:
        return False
    parts = first_parts(conversion)
    inputs = {tensor.name for package in parts.values() for tensor in package.functions[0].inputs}
    return "encoder" in parts or STATES_MASK not in inputs


def shorter(length: int) -> list[int]:
    """Lengths up to this one that make a package quicker for short texts: 128 -> 32, 64, 128."""
    return [*(n for n in (length // 4, length // 2) if n >= LEAST_LENGTH), length]


def first_parts(conversion: Conversion) -> dict[Part, Package]:
    """The packages of the first variant: one, or those of an encoder and a decoder."""
    first = conversion.packages[0].variant
    return {package.part: package for package in conversion.packages if package.variant == first}
