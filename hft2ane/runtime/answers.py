"""From a network's numbers to the answers that people expect: as transformers' pipelines word and order them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hft2ane.errors import BadInput

Array = np.ndarray[Any, Any]
Answer = dict[str, Any]

IDENTITY, SIGMOID = "Identity", "Sigmoid"  # the last word of torch's class names in a config.json
OUTSIDE = "O"  # the label of tokens that are no entity's


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def sigmoid(scores: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-scores)))


FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {"softmax": softmax, "sigmoid": sigmoid, "none": np.asarray}


def probabilities(logits: Array, problem: str | None, function: str | None = None) -> Array:
    """Logits (labels) as transformers' text-classification shows them, or through the function named. BadInput."""
    own = "sigmoid" if problem == "multi_label_classification" or logits.size == 1 else "softmax"
    named = function or ("none" if problem == "regression" else own)
    if named not in FUNCTIONS:
        raise BadInput(f"function_to_apply={function!r} is not done here; there are {', '.join(FUNCTIONS)}")
    return FUNCTIONS[named](logits)


def labelled(scores: Array, labels: Sequence[str]) -> list[Answer]:
    """The best first."""
    found = [{"label": labels[i] if labels else f"LABEL_{i}", "score": float(score)} for i, score in enumerate(scores)]
    return sorted(found, key=lambda each: each["score"], reverse=True)


def relevance(logits: Array, activation: str | None) -> Array:
    """Logits (labels) as sentence-transformers' CrossEncoder gives them: if nothing else is said, one through a
    sigmoid, several as they are. BadInput."""
    kind = activation.rpartition(".")[2] if activation else SIGMOID if logits.size == 1 else IDENTITY
    if kind not in (SIGMOID, IDENTITY):
        raise BadInput(
            f"config.json asks for the activation {activation}, which is not known here: call model(**inputs)"
        )
    return sigmoid(logits) if kind == SIGMOID else logits


def ranked(scores: Sequence[float], documents: Sequence[str], return_documents: bool) -> list[Answer]:
    """The best first."""
    found = [
        {"corpus_id": i, "score": score, **({"text": documents[i]} if return_documents else {})}
        for i, score in enumerate(scores)
    ]
    return sorted(found, key=lambda each: each["score"], reverse=True)


def entities(scores: Array, labels: Sequence[str], tokens: Any, text: str, unknown: str | None) -> list[Answer]:
    """A row a token that is not special, with its best label. `tokens`: an Encoding; `scores` (tokens, labels)."""
    found = []
    for i in range(len(tokens)):
        if tokens.special_tokens_mask[i]:
            continue
        best = int(scores[i].argmax())
        start, end = tokens.offsets[i]
        found.append(
            {
                "entity": labels[best] if labels else f"LABEL_{best}",
                "score": float(scores[i, best]),
                "index": i,
                "word": text[start:end] if tokens.tokens[i] == unknown else tokens.tokens[i],
                "start": start,
                "end": end,
            }
        )
    return found


def grouped(found: Sequence[Answer], join: Callable[[list[str]], str]) -> list[Answer]:
    """Neighbours with one label as one entity, as aggregation_strategy="simple". `join`: tokens -> their text."""
    groups: list[list[Answer]] = []
    for each in found:
        if groups and not each["entity"].startswith("B-") and _tag(each) == _tag(groups[-1][-1]):
            groups[-1].append(each)
        else:
            groups.append([each])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([each["score"] for each in group])),
            "word": join([each["word"] for each in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _tag(entity: Answer) -> str:
    name: str = entity["entity"]
    return name[2:] if name.startswith(("B-", "I-")) else name


def spans(start: Array, end: Array, inside: Array, most: int) -> tuple[list[tuple[float, int, int]], float]:
    """(score, first token, last token) of the answers in one window, the best first; and the score of there being
    none, which the first token has. `inside`: which tokens are the context's; `most`: tokens of an answer."""
    counted = inside.copy()
    counted[0] = True
    start, end = (softmax(np.where(counted, logits, -1e4)) for logits in (start, end))
    none = float(start[0] * end[0])
    both = np.triu(np.where(inside, start, 0.0)[:, None] * np.where(inside, end, 0.0)[None, :])
    both = both - np.triu(both, most)
    order = np.argsort(-both, axis=None, kind="stable")[: np.count_nonzero(both)]
    places = (divmod(int(place), len(end)) for place in order)
    return [(float(both[first, last]), first, last) for first, last in places], none


def similarity(a: Array, b: Array, kind: str) -> Array:
    """(n, d) and (m, d) -> (n, m), greater for what is more alike. BadInput."""
    if a.shape[1] != b.shape[1] or not {a.dtype.kind, b.dtype.kind} <= set("iuf"):
        raise BadInput(
            f"compared are vectors (n, d) of numbers, given are {a.shape} of {a.dtype} and {b.shape} of {b.dtype}: "
            "model.embed(texts) makes them"
        )
    if kind == "cosine":
        return normalized(a) @ normalized(b).T
    if kind == "dot":
        return np.asarray(a @ b.T)
    if kind in ("euclidean", "manhattan"):
        apart = a[:, None] - b[None, :]
        return -np.asarray(np.sqrt((apart**2).sum(-1)) if kind == "euclidean" else np.abs(apart).sum(-1))
    raise BadInput(f"config_sentence_transformers.json compares by {kind!r}, which is not known here")


def normalized(vectors: Array) -> Array:
    """Of length 1; a vector of zeros stays."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def masked(probabilities: Array, top_k: int) -> list[tuple[int, float]]:
    """(id, probability) of the best, the best first; of equals the lower id."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(int(i), float(probabilities[i])) for i in order]
