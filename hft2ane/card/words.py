"""The card's words: what it says of each task, each kind of weights, and each warning of the linter."""

from collections.abc import Mapping
from dataclasses import dataclass

from hft2ane.records.recipe import Task, Variant


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
# What a warning of the linter means for an app. Of rules that have no words here the finding's own are shown.
WARNINGS: Mapping[str, str] = {
    "axis-limit-copy": "the scores have a last axis longer than the Neural Engine takes, so the CPU puts them into "
    "this layout at the end of each call. The network before it stays on the engine, and no number changes.",
    "last-axis-unaligned": "the Neural Engine pads rows to 32 numbers, so a length that is no multiple of 32 costs as "
    "much as the next one that is. No number changes.",
}
# What `tokenizers` calls the inputs.
PYTHON_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
SWIFT_TRANSFORMERS = "1.3.3"  # the version that the Swift code is written for
