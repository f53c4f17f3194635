"""Commands for those who use a release: try."""

import argparse
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

from hft2ane.cli.options import Commands, quieten
from hft2ane.errors import BadInput

if TYPE_CHECKING:  # it brings numpy
    from hft2ane.runtime.model import Model


def add(commands: Commands) -> None:
    sub = commands.add("try", attempt, "Ask a published model what its task is for.")
    sub.add_argument("model", metavar="MODEL", help="a repo, REPO@TAG, a release's folder, or an .mlpackage")
    sub.add_argument(
        "texts",
        nargs="+",
        metavar="TEXT",
        help="one or several; a question and its context, a query and documents, a question and choices",
    )
    sub.add_argument("--pair", action="store_true", help="classify two texts as one that consists of both")
    sub.add_argument("--variant", help="default: float16, or the best that there is")
    sub.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json, for a package that has none beside it")
    sub.add_argument("--json", action="store_true", help="the whole answers as JSON")


def attempt(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import load
    from hft2ane.terminal.answers import show_answers

    model = load(options.model, variant=options.variant, tokenizer=options.tokenizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        titles, found = ask(model, options.texts, options.pair)
    for warning in caught:
        print(f"hft2ane: {warning.message}", file=sys.stderr)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show_answers(titles, found)
    return 0


def ask(model: "Model", texts: list[str], pair: bool) -> tuple[list[str], list[Any]]:
    """What is asked, and an answer for each: rows of a table, a text, or numbers."""
    first, rest = texts[0], texts[1:]
    if pair and (len(texts) != 2 or model.task not in ("text-classification", "next-sentence-prediction")):
        raise BadInput(f"--pair is for two texts and a model that classifies, not for {len(texts)} and {model.task}")
    match model.task:
        case "sentence-embedding":
            vectors = model.embed(texts)
            near = model.similarity(vectors, vectors)
            rows = [
                {"text": text, "similarity to the first": float(n), "vector": vector.tolist()}
                for text, n, vector in zip(texts, near[0], vectors, strict=True)
            ]
            return [f"{vectors.shape[1]} numbers a text"], [rows]
        case "feature-extraction":
            return texts, [each.tolist() for each in model.features(texts)]
        case "text-classification" if len(model.labels) == 1 and rest and not pair:
            return [first], [model.rank(first, rest, return_documents=True)]
        case "text-classification" | "next-sentence-prediction":
            return ([" / ".join(texts)], [model.classify((first, rest[0]))]) if pair else (texts, model.classify(texts))
        case "token-classification" | "replaced-token-detection":
            return texts, model.tokens(texts)
        case "fill-mask":
            return texts, model.fill_mask(texts)
        case "question-answering":
            if len(texts) != 2:
                raise BadInput(f'a question and its context are two texts, given are {len(texts)}: try MODEL "…" "…"')
            return [first], [model.answer(first, rest[0], top_k=3)]
        case "multiple-choice":
            return [first], [model.rank(first, rest, return_documents=True)]
        case "text-generation" | "text2text-generation":
            return texts, [model.write(text) for text in texts]
    # Not known here: its error says what to do.
    return texts, [model(text) for text in texts]
