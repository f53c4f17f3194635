"""What can be said of a package before it is made, from config.json, the sizes of the files, and the manifest.

No torch is needed, so none of it is certain: it is what people should expect, and what the night would refuse."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hft2ane import layout
from hft2ane.card.markdown import megabytes
from hft2ane.errors import Hft2aneError, UnknownFamily
from hft2ane.families import FAMILIES, family
from hft2ane.records.job import Job
from hft2ane.records.lint import WEIGHTS_MOST, LintSettings
from hft2ane.records.recipe import Task, Variant
from hft2ane.records.source import RemoteFile

# 10^12 floating-point operations a second, with all that a job costs besides: `make demo` took 12.6 s for the 0.52 of
# all-MiniLM-L6-v2, on two shared cores.
RATE = 0.04
BYTES = {"float64": 8, "float16": 2, "bfloat16": 2}  # of a parameter, by config.json's dtype; most have 4
# Bytes of a parameter by variant, and of one in a table that is looked up.
STORED: Mapping[Variant, tuple[float, float]] = {
    "float16": (2, 2),
    "int8": (1, 1),
    "palettized-8": (1, 1),
    "palettized-6": (0.75, 1),
    "palettized-4": (0.5, 1),
    "mixed-6": (0.75, 1),
    "mixed-4": (0.5, 1),
}
# What the names of transformers' classes end with, the more telling first.
CLASSES: Mapping[str, Task] = {
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForNextSentencePrediction": "next-sentence-prediction",
    "ForMultipleChoice": "multiple-choice",
    "ElectraForPreTraining": "replaced-token-detection",
    "EncoderDecoderModel": "text2text-generation",
    "Model": "feature-extraction",
}
# Tasks whose weights above the encoder may be taken for one another's; a checkpoint of one row lacks some of another.
HEADS: tuple[tuple[Task, ...], ...] = (
    ("fill-mask", "text-generation", "next-sentence-prediction"),
    ("text-classification", "token-classification", "multiple-choice", "question-answering"),
    ("replaced-token-detection",),
)
PADDED = ("camembert", "mpnet", "roberta", "xlm-roberta")  # families whose first position is that after padding's
UNTYPED = dict.fromkeys(
    ("distilbert", "modernbert", "mpnet"), 1
)  # families that do not tell a first text from a second
PIPELINE = "modules.json"  # of sentence-transformers
DENSE = re.compile(r"^\d+_Dense/")  # a layer after the pooling, with a size of its own

Config = Mapping[str, object]


@dataclass(frozen=True)
class Port:
    """An input or output: its name, and its shape, L being the length and `?` what nobody knows before."""

    name: str
    shape: str


@dataclass(frozen=True)
class Forecast:
    """`reason`: how the task is known. `sizes`: bytes by variant; of a mixed one the least. `refusals`: why the night
    would fail, and what to do. `scores`: how many entries the main output has, None where that is not known."""

    task: Task | None
    reason: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    scores: int | None
    sizes: Mapping[Variant, int]
    refusals: tuple[str, ...]


def forecast(job: Job, content: bytes | Hft2aneError) -> Forecast:
    """Of a job that makes packages. `content`: the original's config.json, or why it could not be read."""
    config = parsed(content)
    task, reason = task_of(job, config)
    inputs, outputs, scores = contract(task, config, job.files)
    sizes = {variant: size(variant, job.files, config) for variant in job.recipe.variants}
    return Forecast(task, reason, inputs, outputs, scores, sizes, tuple(refusals(job, config, sizes)))


def minutes(job: Job) -> float:
    return job.work / RATE / 60


def parsed(content: bytes | Hft2aneError) -> Config | None:
    try:
        found = json.loads(content) if isinstance(content, bytes) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def task_of(job: Job, config: Config | None) -> tuple[Task | None, str]:
    if job.recipe.task:
        return job.recipe.task, "the manifest says so"
    if any(file.path == PIPELINE for file in job.files):
        return "sentence-embedding", f"there is a {PIPELINE}"
    if config is None:
        return None, "config.json cannot be read"
    for name, task in named(config).items():
        if task:
            return task, f"config.json names {name}"
    if not named(config):
        return None, "config.json names no class: the weights will tell"
    return None, f"config.json names {', '.join(named(config))}, which no task has: say `task:` in the manifest"


def named(config: Config) -> dict[str, Task | None]:
    """The classes of transformers that config.json names, with the task of each."""
    found = config.get("architectures")
    names = [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
    return {name: next((task for end, task in CLASSES.items() if name.endswith(end)), None) for name in names}


def contract(
    task: Task | None, config: Config | None, files: Sequence[RemoteFile]
) -> tuple[tuple[Port, ...], tuple[Port, ...], int | None]:
    """Inputs, outputs, and the number of entries of the main output."""
    config = config or {}
    width, words = number(config, "hidden_size", "dim"), number(config, "vocab_size")
    vector = None if any(DENSE.search(file.path) for file in files) else width
    named = config.get("id2label")
    labels = len(named) if isinstance(named, dict) else number(config, "num_labels") or 2
    shapes: Mapping[Task, tuple[tuple[str, str, int | None], ...]] = {
        "feature-extraction": (("last_hidden_state", "1×L×{}", width),),
        "sentence-embedding": (("sentence_embedding", "1×{}", vector), ("token_embeddings", "1×L×{}", width)),
        "fill-mask": (("logits", "1×L×{}", words),),
        "text-generation": (("logits", "1×L×{}", words),),
        "text-classification": (("logits", "1×{}", labels),),
        "token-classification": (("logits", "1×L×{}", labels),),
        "question-answering": (("start_logits", "1×L", None), ("end_logits", "1×L", None)),
        "next-sentence-prediction": (("logits", "1×{}", 2),),
        "replaced-token-detection": (("logits", "1×L", None),),
    }
    if task is None or task not in shapes:  # several packages, or several texts at once: the published card will tell
        return (), (), None
    kinds = UNTYPED.get(str(config.get("model_type")), config.get("type_vocab_size", 2))
    typed = task not in ("sentence-embedding", "text-generation") and isinstance(kinds, int) and kinds > 1
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))
    outputs = tuple(Port(name, shape.format(count or "?")) for name, shape, count in shapes[task])
    return tuple(Port(name, "1×L") for name in inputs), outputs, shapes[task][0][2]


def number(config: Config, *keys: str) -> int | None:
    """The first of these keys that is a whole number above 0."""
    found = (config.get(key) for key in keys)
    return next((value for value in found if type(value) is int and value > 0), None)


def size(variant: Variant, files: Sequence[RemoteFile], config: Config | None) -> int:
    config = config or {}
    a_parameter = BYTES.get(str(config.get("dtype", config.get("torch_dtype"))), 4)
    parameters = sum(file.size for file in files if file.path.endswith(".safetensors")) / a_parameter
    width = number(config, "embedding_size") or number(config, "hidden_size", "dim") or 0
    table = min(parameters, (number(config, "vocab_size") or 0) * width)
    linear, looked_up = STORED[variant]
    return round(linear * (parameters - table) + looked_up * table)


def refusals(job: Job, config: Config | None, sizes: Mapping[Variant, int]) -> list[str]:
    if config is None:
        return []
    found = []
    try:
        layout.check_config(config, layout.CONFIG)
    except Hft2aneError as err:
        found.append(str(err))
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type and model_type not in FAMILIES:
        try:
            family(model_type)
        except UnknownFamily as err:
            found.append(str(err))
    elif named(config) and (task := task_of(job, config))[0] is None:
        found.append(task[1])
    elif misfit := other_head(job.recipe.task, config):
        found.append(misfit)
    positions, longest = number(config, "max_position_embeddings"), max(job.recipe.lengths)
    if positions and model_type in PADDED:
        padding = config.get("pad_token_id", 1)
        positions -= 1 + padding if isinstance(padding, int) else 0
    if positions and longest > positions:
        found.append(
            f"{longest} tokens are asked for, the model has {positions} positions for them: correct `lengths:`"
        )
    system = LintSettings().system
    most = WEIGHTS_MOST[system]
    for variant, bytes_ in sizes.items():
        if bytes_ > most:
            found.append(
                f"{variant} has about {megabytes(bytes_)} of weights, and the Neural Engine of {system} takes "
                f"{megabytes(most)}: ask for smaller `variants:`"
            )
    return found


def other_head(task: Task | None, config: Config) -> str | None:
    """Why this checkpoint cannot do the task that the manifest asks for, as far as the names of its classes tell."""
    heads = next((row for row in HEADS if task in row), None)
    theirs = set(named(config).values())
    if heads is None or not theirs <= {each for row in HEADS for each in row} or theirs & set(heads):
        return None
    return f"config.json names {', '.join(named(config))}, whose weights have no head for {task}: correct `task:`"
