"""What a Hugging Face model folder holds: the files that a conversion needs, and those that are refused."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hft2ane.errors import CorruptFile, SourceError, UnsafeFormat, UnsupportedConfig, UnsupportedModel
from hft2ane.records.source import RemoteFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")
# Formats that run code when loaded, or that nothing here reads.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")

CONFIG = "config.json"
GENERATION = "generation_config.json"  # how a text that is written begins and ends
TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
}
SENTENCEPIECE = re.compile(r"[^/]+\.spm|sentencepiece[^/]*\.model|sp(iece|m)\.model")
# sentence-transformers: the list of modules, and a folder for each after the transformer itself, e.g. 2_Dense.
SENTENCE = re.compile(r"modules\.json|sentence_\w+_config\.json|config_sentence_transformers\.json")
MODULE = re.compile(r"\d+_[A-Za-z]\w*", re.ASCII)
MODULE_FILES = {CONFIG, WEIGHTS}

README = "README.md"
NOBODY = "your-organization"  # owner of a release that is in a folder only
LEGAL = re.compile(r"(LICEN[CS]E|NOTICE)[^/]*", re.IGNORECASE)


# Bytes: these files are read into memory whole. The largest tokenizer here has 17 MB, the largest index of shards 0.2.
SMALL = 100_000_000
# What a config.json counts, and more than any honest one counts up to. transformers makes a name for each label when it
# reads the file, before anybody can ask for their number: 34 s for four million.
COUNTS = re.compile(r"(num|n|max)_\w+|\w+_(size|layers?|dim|embeddings)")
COUNT, LABELS = 1 << 22, 100_000


def select(files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files of a repo that a conversion needs, and no other, in order of path.

    UnsafeFormat: weights as pickle and the like only; SourceError: no config.json, or no weights; CorruptFile: an
    incomplete set of shards, or a path that no honest repo has."""
    _check_paths(files)
    paths = {file.path for file in files}
    if CONFIG not in paths:
        raise SourceError(
            f"there is no {CONFIG} at the top of the repo, so it is not a transformers model: check the id"
        )
    wanted = {*_weights(paths), *(path for path in paths if _is_wanted(path))}
    _check_modules(paths)
    _check_spellings(files, wanted)
    _check_sizes(file for file in files if file.path in wanted)
    return tuple(sorted((file for file in files if file.path in wanted), key=lambda file: file.path))


def shaping(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Those of the selected files that shape the release's packages and tokenizer."""
    return tuple(file for file in files if file.path != README and not LEGAL.fullmatch(file.path))


def legal(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The licence and notice files, which go along with every copy."""
    return tuple(file for file in files if LEGAL.fullmatch(file.path))


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse what config.json itself says cannot be taken. `where` is for the message, e.g. the repo's id.

    UnsafeFormat: it needs code from the repo; UnsupportedModel: it does not say what it is; UnsupportedConfig: it
    counts absurdly far."""
    if config.get("auto_map"):
        raise UnsafeFormat(
            f"{where}: config.json has an auto_map: the model needs Python code from its own repo, which is never run; "
            "use a version of it whose architecture is part of transformers"
        )
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise UnsupportedModel(
            f"{where}: config.json names no model_type, so its architecture is unknown; ask the author to add it"
        )
    for key, value in config.items():
        most = LABELS if key == "num_labels" else COUNT
        if COUNTS.fullmatch(key) and type(value) is int and abs(value) > most:
            raise UnsupportedConfig(
                f"{where}: {key} = {str(value)[:30]} is absurd: no model has more than {most} of that"
            )


def _is_wanted(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    if folder:
        return MODULE.fullmatch(folder) is not None and name in MODULE_FILES
    return (
        name in TOKENIZER | {CONFIG, GENERATION, README}
        or SENTENCE.fullmatch(name) is not None
        or SENTENCEPIECE.fullmatch(name) is not None
        or LEGAL.fullmatch(name) is not None
    )


def _weights(paths: set[str]) -> set[str]:
    """The model's own weights: one file, or an index and all its shards."""
    if WEIGHTS in paths:
        return {WEIGHTS}
    shards = {path: match for path in paths if (match := SHARD.fullmatch(path))}
    if INDEX in paths and shards:
        _check_shards(shards)
        return {INDEX, *shards}
    if INDEX in paths or shards:
        there, missing = (INDEX, "shards") if INDEX in paths else (min(shards), INDEX)
        raise CorruptFile(f"there is {there} but no {missing}: the upload is not complete, ask the author")
    if others := sorted(path for path in paths if "/" not in path and path.lower().endswith(OTHER_WEIGHTS)):
        raise UnsafeFormat(_unsafe(others))
    raise SourceError(
        f"there are no weights at the top of the repo ({WEIGHTS}, or {INDEX} and its shards): check the id, "
        "or ask the author for them"
    )


def _check_shards(shards: Mapping[str, re.Match[str]]) -> None:
    totals = {int(match[2]) for match in shards.values()}
    if len(totals) > 1:
        raise CorruptFile(f"shards of different sets ({', '.join(sorted(shards)[:4])} …): ask the author which to use")
    total = totals.pop()
    if {int(match[1]) for match in shards.values()} != set(range(1, total + 1)):
        raise CorruptFile(f"{len(shards)} of {total} shards are there: the upload is not complete, ask the author")


def _check_modules(paths: set[str]) -> None:
    """A module's weights must be safe too: without this a Dense layer would be missing silently."""
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        if MODULE.fullmatch(folder) and name.lower().endswith(OTHER_WEIGHTS) and f"{folder}/{WEIGHTS}" not in paths:
            raise UnsafeFormat(_unsafe([path]))


def _unsafe(others: Sequence[str]) -> str:
    names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return (
        f"the weights are not in safetensors, only in {names}: pickle can run code when it is loaded, so it never is; "
        "ask the author for safetensors, or convert them with the Hub's safetensors space"
    )


def _check_paths(files: Sequence[RemoteFile]) -> None:
    for path in (file.path for file in files):
        if {"", ".", ".."} & set(path.split("/")) or re.search(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:", path):
            raise CorruptFile(
                f"the repo has a file named {path[:200]!r}, which could leave the folder: nothing is taken"
            )


def _check_sizes(files: Iterable[RemoteFile]) -> None:
    for file in files:
        if file.size > SMALL and not file.path.endswith(".safetensors"):
            raise CorruptFile(
                f"{file.path} has {file.size / 1e6:.0f} MB, no honest one more than {SMALL / 1e6:.0f}: nothing is taken"
            )


def _check_spellings(files: Sequence[RemoteFile], wanted: set[str]) -> None:
    """On a Mac's disk names that differ by case are one file, and the last one written would win."""
    spellings: dict[str, list[str]] = {}
    for file in files:
        spellings.setdefault(file.path.lower(), []).append(file.path)
    for path in sorted(wanted):
        if len(same := spellings[path.lower()]) > 1:
            raise CorruptFile(f"{' and '.join(sorted(same))} are one file on most disks: ask the author which is meant")
