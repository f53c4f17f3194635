"""The export step: source/ -> one .mlpackage a variant (two for a pair of encoder and decoder), and export.json.

Our modules are called once a length on symbols (see `lower`), which writes a MIL program: no trace, no graph passes.
One length gives a package that runs from iOS 16 and macOS 13; several give one package with a function a length that
share their weights, which needs iOS 18 and macOS 15.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hft2ane import disk, keys, package, records
from hft2ane.audit import calibration
from hft2ane.compress import MIXED, about
from hft2ane.condition import check, condition
from hft2ane.errors import ExportError, ToolchainMismatch, UnsupportedConfig
from hft2ane.families import STATES, TaskModule
from hft2ane.layout import shaping
from hft2ane.limits import check_size
from hft2ane.lower import NONE, Stored, Symbol, Writer
from hft2ane.mil.signatures import Type
from hft2ane.mil.write import Function, Program, Var, Weights
from hft2ane.mixed import mix, rows
from hft2ane.progress import Progress, silent
from hft2ane.provenance import made
from hft2ane.records.job import Job
from hft2ane.records.package import SEVERAL_OS, SINGLE_OS, Exported, Mixture, Package, Part, Tensor
from hft2ane.records.package import Function as FunctionRecord
from hft2ane.records.recipe import FORMS, Form, Task, Variant
from hft2ane.records.source import Source
from hft2ane.reference import WRITERS, Described, Original, describe, load
from hft2ane.rewrite import blank, rewrite

# Candidates a question in a multiple-choice package, as in SWAG and most of its successors.
CHOICES = 4

INPUTS = {
    "input_ids": "Token ids from the model's tokenizer, padded on the right to the fixed length.",
    "attention_mask": "1 for tokens, 0 for padding.",
    "token_type_ids": "From the model's tokenizer: all 0 for a single text, in most models 1 for the second of two.",
    "encoder_hidden_states": "What the encoder gives for the text that is read: its last_hidden_state.",
    "encoder_attention_mask": "1 for tokens of the text that is read, 0 for its padding.",
}
OUTPUTS = {
    "last_hidden_state": "Hidden state of each token after the last layer; ignore the padding.",
    "pooler_output": "Hidden state of the first token through the pooler (linear, tanh).",
    "token_embeddings": "Embedding of each token; ignore the padding.",
    "sentence_embedding": "Embedding of the whole text.",
    "logits": "Raw scores, before softmax or sigmoid.",
    "start_logits": "Raw score of each token as the answer's first.",
    "end_logits": "Raw score of each token as the answer's last.",
}


@dataclass(frozen=True)
class Deployment:
    """What a package needs to run: a version of the specification, and the systems that have it."""

    specification: int
    minimum_os: str


SINGLE = Deployment(7, SINGLE_OS)
MULTIFUNCTION = Deployment(9, SEVERAL_OS)


def export(folder: Path, progress: Progress = silent) -> Exported:
    """Writes the packages and export.json into the job's folder. See errors.UnsupportedModel for what is refused."""
    started = time.monotonic()
    job, source = records.read(folder / "job.json", Job), records.read(folder / "source.json", Source)
    (folder / "export.json").unlink(missing_ok=True)  # it would speak of packages that are no more
    check_toolchain()
    described = describe(folder / "source", job.recipe.task)
    longest = max(job.recipe.lengths)
    shape = (1, CHOICES, longest) if described.task == "multiple-choice" else (1, longest)
    check_variants(described, job.recipe.variants, source.id)
    check_size(blank(described), shape, job.recipe.variants, source.id)
    # No variant has more bytes than the original's weights, which are in fp16 at least.
    weights = sum(file.size for file in source.files if file.path.endswith(".safetensors"))
    disk.need_room(folder, weights * len(job.recipe.variants), f"the export of {source.id}")
    progress("load the original", 0.0)
    original = load(folder / "source", job.recipe.task)
    check_lengths(original, job.recipe.lengths, source.id)
    progress("rewrite", 0.4)
    module = rewrite(original)
    progress("audit the ranges", 0.45)
    task: Task = original.task  # type: ignore[assignment]
    batches = calibration(folder / "source", original, module.inputs, job.recipe.lengths)
    ranges = condition(module, batches)
    check(ranges, source.id)
    convert_key = keys.convert_key(shaping(source.files), job.recipe, original.name)
    progress("export", 0.5)
    packages = []
    is_mixed = any(variant in MIXED for variant in job.recipe.variants)
    measured = rows(folder / "source", original, module.inputs, job.recipe.lengths) if is_mixed else []
    for variant in job.recipe.variants:
        mixture = None
        if variant in MIXED:
            progress(f"choose the layers of {variant}", 0.5)
            mixture = mix(module, task, variant, measured, batches[0])
        for part, its_module in module.parts.items():
            path = folder / f"{model_name(source.id)}{part.capitalize()}.{variant}.mlpackage"
            metadata = provenance(source, original, convert_key, variant, part, mixture)
            written = write(path, its_module, job.recipe.lengths, variant, original, metadata, mixture)
            packages.append(replace(written, part=part))
    exported = Exported(
        family=original.name,
        task=task,
        original=type(original.model).__name__,
        convert_key=convert_key,
        packages=tuple(packages),
        labels=original.labels,
        problem=original.config.problem_type if original.task == "text-classification" else None,
        audit=ranges,
        generation=original.generation,
        toolchain=keys.toolchain(),
        seconds=round(time.monotonic() - started, 2),
        made=made(),
    )
    records.write(folder / "export.json", exported)
    progress("export", 1.0)
    return exported


def check_toolchain() -> None:
    """ToolchainMismatch when what is installed is not what the convert key says."""
    for name, locked in keys.toolchain().items():
        if version(name).partition("+")[0] != locked:
            raise ToolchainMismatch(
                f"{name} {version(name)} is installed, but packages are made with {locked}: "
                "pip install -c constraints.txt 'hft2ane[convert]'"
            )


def check_variants(described: Described, variants: Sequence[Variant], model: str) -> None:
    """UnsupportedConfig: layers are chosen by what they do to a text's answer, not yet to a text that is written."""
    if described.task in WRITERS and (mixed := [each for each in variants if each in MIXED]):
        raise UnsupportedConfig(
            f"{model}: there is no {', '.join(mixed)} for {described.task}; ask for one of {', '.join(FORMS)}"
        )


def check_lengths(original: Original, lengths: Sequence[int], model: str) -> None:
    if too_long := [n for n in lengths if n > original.length_limit]:
        raise UnsupportedConfig(
            f"{model}: lengths {', '.join(map(str, too_long))} are beyond its {original.length_limit} positions"
        )


def model_name(model: str) -> str:
    """`sentence-transformers/all-MiniLM-L6-v2` -> `all-MiniLM-L6-v2`, which is also the stem of its files."""
    return re.sub(r"[^\w.-]", "_", model.rpartition("/")[2])


def provenance(
    source: Source,
    original: Original,
    convert_key: str,
    variant: Variant,
    part: Part,
    mixture: Mixture | None = None,
) -> dict[str, str]:
    """What the package says of itself, wherever it is copied to."""
    raised = [f"{each.path} {each.form}" for each in mixture.raised] if mixture else []
    versions = {f"com.github.hft2ane.{name}": locked for name, locked in keys.toolchain().items()}
    return {
        "author": f"Converted by hft2ane from {source.id}",
        "co.huggingface.exporters.name": source.id,
        "co.huggingface.exporters.task": original.task,
        "com.github.hft2ane.source": f"{source.id}@{source.commit}",
        "com.github.hft2ane.family": original.name,
        **({"com.github.hft2ane.part": part} if part else {}),
        "com.github.hft2ane.convert_key": convert_key,
        "com.github.hft2ane.variant": variant,
        "com.github.hft2ane.weights": about(variant, mixture),
        **({"com.github.hft2ane.raised": ", ".join(raised)} if raised else {}),
        **versions,
    }


def write(
    path: Path,
    module: TaskModule,
    lengths: Sequence[int],
    variant: Variant,
    original: Original,
    metadata: Mapping[str, str],
    mixture: Mixture | None = None,
) -> Package:
    """The module at each length as the package at `path`. `mixture`: of a mixed variant."""
    deployment = SINGLE if len(lengths) == 1 else MULTIFUNCTION
    choices = CHOICES if original.task == "multiple-choice" else None
    linear: Form = mixture.form if mixture else variant  # type: ignore[assignment]
    raised = {each.path: each.form for each in mixture.raised} if mixture else NONE
    program, functions = build(module, lengths, deployment, choices, linear, raised)
    part = metadata.get("com.github.hft2ane.part")
    what = f"{original.task}, the {part}," if part else original.task
    title = f"{what} of {metadata['co.huggingface.exporters.name']}, {variant}, for the Apple Neural Engine"
    package.write(path, program, title, INPUTS | OUTPUTS, metadata)
    return Package(
        variant=variant,
        file=path.name,
        digest=package.digest(path),
        size=package.size(path),
        minimum_os=deployment.minimum_os,
        functions=functions,
        default_function=program.default_function_name,
        weights=about(variant, mixture),
        mixture=mixture,
    )


def build(
    module: TaskModule,
    lengths: Sequence[int],
    deployment: Deployment,
    choices: int | None = None,
    linear: Form = "float16",
    raised: Mapping[str, Form] = NONE,
) -> tuple[Program, tuple[FunctionRecord, ...]]:
    """The MIL program with one function a length: `main`, or `tokens_64`, `tokens_128` …, the longest as default."""
    program, functions = Program(deployment.specification, Weights(deployment.specification)), []
    stored: dict[Any, Stored] = {}
    for length in sorted(lengths):
        name = "main" if len(lengths) == 1 else f"tokens_{length}"
        shape = (1, length) if choices is None else (1, choices, length)
        function = trace(module, shape, program, stored, linear, raised)
        program.functions[name] = function
        functions.append(
            FunctionRecord(
                name,
                length,
                tuple(contract(var, INPUTS[key]) for key, var in function.inputs.items()),
                tuple(contract(var, OUTPUTS[var.name]) for var in function.outputs),
            )
        )
    program.default_function_name = functions[-1].name
    return program, tuple(functions)


def trace(
    module: Any,
    shape: tuple[int, ...],
    program: Program,
    stored: dict[Any, Stored],
    linear: Form = "float16",
    raised: Mapping[str, Form] = NONE,
) -> Function:
    """One call of the module on symbols. Outputs carry the original's names."""
    inputs = {name: input_type(module, name, shape) for name in module.inputs}
    function = Function(program.specification_version, inputs, program.weights)
    writer = Writer(module, function, stored, (*module.inputs, *module.OUTPUTS), linear, raised)
    with writer.following():
        outputs = module(*(Symbol(function.inputs[name], writer) for name in module.inputs))
    distinct = {id(output.var) for output in outputs if isinstance(output, Symbol) and output.var.origin == "operation"}
    if len(distinct) < len(module.OUTPUTS):
        raise ExportError(f"{', '.join(module.OUTPUTS)} are not all computed, each for itself, from the inputs")
    for name, output in zip(module.OUTPUTS, outputs, strict=True):
        output.var.name = name
    function.outputs = [output.var for output in outputs]
    return function


def input_type(module: Any, name: str, shape: tuple[int, ...]) -> Type:
    """Ids or a mask, or the states of an encoder, which has read as many tokens."""
    return Type((*shape, module.memory), "float16") if name == STATES else Type(shape, "int32")


def contract(var: Var, about: str) -> Tensor:
    return Tensor(var.name, var.shape, var.dtype, about)  # type: ignore[arg-type]
