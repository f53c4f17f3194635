"""What is wrong with a manifest, in words: the key, what is wrong with its value, and what it takes."""

import difflib
import re
from collections.abc import Sequence

from pydantic_core import ErrorDetails

from hft2ane.manifest.document import File, Place
from hft2ane.manifest.schema import ABOUT, KEYS, is_hub_id

KINDS = {"null": "nothing", "bool": "true or false", "int": "a number", "float": "a number", "timestamp": "a date"}


def worded(error: ErrorDetails, file: File) -> str:
    """The problem for people: the key, what is wrong with its value, and what it takes."""
    place = error["loc"]
    match place:
        case ("models", int()):
            key = spot = "entry"
        case ("models", int(), *inner) | inner:
            names = [part for part in inner if isinstance(part, str)]
            key, spot = names[-1], ".".join(names)
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(place)
        case "missing":
            return f"`{key}` is missing: {ABOUT[key]}"
        case "value_error":
            return f"{spot}: {error['ctx']['error']}; it takes {ABOUT[key]}"
        case "literal_error":
            known = error["ctx"]["expected"]
            near = _nearest(str(error["input"]), re.findall(r"'(.+?)'", known))
            return f"{spot}: {_shown(place, error, file)} is unknown{near}; it takes {known}"
        case "string_type" if place in file.texts and error["input"] is not None:
            kind, text = file.texts[place]
            return f'{spot}: {text} is read as {KINDS.get(kind, "something else")}; put it in quotes: {key}: "{text}"'
        case _:
            meant = _meant(key, error["input"])
            return f"{spot}: {_shown(place, error, file)} will not do{meant}; it takes {ABOUT[key]}"


def _shown(place: Place, error: ErrorDetails, file: File) -> str:
    """The faulty value, short: a scalar as it is written."""
    if place in file.texts:
        kind, text = file.texts[place]
        if kind == "null":
            return "an empty value"
        return repr(text if len(text) <= 100 else text[:97] + "…") if kind == "str" else text[:100]
    value = error["input"]
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else value[:97] + "…")
    return f"a list of {len(value)}" if isinstance(value, list) else "a mapping"


def _unknown_key(place: Place) -> str:
    key = str(place[-1])
    holder = next((str(part) for part in reversed(place[:-1]) if isinstance(part, str)), "")
    known = KEYS[holder]
    if holder in ("", "defaults") and key in KEYS["models"]:
        near = "; it belongs in `defaults`" if key in KEYS["defaults"] else "; it belongs to an entry of `models`"
    elif holder in ("publish", "gates") and key in KEYS["models"]:
        near = f"; it belongs beside `{holder}`, not in it"
    else:
        near = _nearest(key, known)
    within = f" in `{holder}`" if holder else ""
    return f"unknown key {key[:100]!r}{within}{near}; known: {', '.join(known)}"


def _meant(key: str, value: object) -> str:
    """An id out of an address, a licence out of its name."""
    if key == "id" and isinstance(value, str) and (found := re.match(r"https?://[^/]+/([^/]+/[^/?#]+)", value[:500])):
        meant = found[1]
    elif key == "license" and isinstance(value, str):
        meant = re.sub(r"[\s_]+", "-", value[:100].strip().lower())
    else:
        return ""
    fits = is_hub_id(meant) if key == "id" else re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", meant)
    return f", did you mean {meant!r}?" if fits else ""


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:100].lower().replace("_", "-"), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
