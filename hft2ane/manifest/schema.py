"""The schema of a manifest: its keys, and what each takes.

    defaults: {publish: {organization: my-org}, lengths: [128]}
    models:
    - sentence-transformers/all-MiniLM-L6-v2
    - {id: owner/name, task: fill-mask, license: apache-2.0, status: paused, reason: waits for the author}

Editors check the same rules while one types: `python -m hft2ane.manifest.schema > hft2ane/manifest.schema.json`.
"""

import json
import sys
from collections import Counter
from typing import Annotated, Any, Literal, Required

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic.config import JsonDict
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from hft2ane.records.recipe import LEAST_LENGTH, VARIANTS, Task, Variant

NAME_TEMPLATE = "{name}-ane"

# What each key takes: editors show it, and so does the message about a value that will not do.
ABOUT = {
    "schema": "the version of this format, 1",
    "defaults": "a mapping of what holds for every model of this file that does not say otherwise",
    "models": "a list of entries: Hub ids, or mappings with `id:`",
    "entry": "a Hub id, or a mapping with `id:`",
    "id": "a Hub id, owner/name: letters, digits, '.', '_' and '-', no '..' or '--', at most 96 characters each",
    "revision": "a branch, tag or commit of the original, a text; default main, which follows the author",
    "task": "what the model is used for, when the checkpoint does not say or says otherwise",
    "lengths": "1 to 8 different input lengths in tokens, each from 8 to 8192, in a list; default [128]",
    "variants": f"a list of different forms of the weights, a package each: {', '.join(VARIANTS)}; default [float16]",
    "gates": "a mapping of the least PSNR that may be published: rewrite, float16, bits8, bits6, bits4; and fall",
    "rewrite": "a PSNR in dB above 0, at most 200: our module against transformers; default 90",
    "float16": "a PSNR in dB above 0, at most 200: a float16 package against transformers; default 50",
    "bits8": "a PSNR in dB above 0, at most 200: a package with weights of 8 bits (int8, palettized-8); default 35",
    "bits6": "a PSNR in dB above 0, at most 200: a package with weights of 6 bits (palettized-6, mixed-6), which "
    "is lossy; default 30",
    "bits4": "a PSNR in dB above 0, at most 200: a package with weights of 4 bits (palettized-4, mixed-4), which "
    "is lossy; default 25",
    "fall": "a number of dB above 0, at most 200, by which a PSNR may be below that of the version before; default 3",
    "license": "the licence that the original must have, as the Hub spells it (lower case, e.g. apache-2.0)",
    "major": "a whole number, 1 to 999; one more than what is published has allows to break its interface; default 1",
    "publish": "a mapping of where the release goes: organization, name",
    "organization": "a Hub user or organisation: letters, digits, '.', '_' and '-', at most 96 characters",
    "name": f"the name of the published repo; in defaults a template with {{name}}, default {NAME_TEMPLATE}",
    "target": "the runtime to convert for; default coreml",
    "status": "active, or paused (which needs a reason): nothing is done for a paused model; default active",
    "reason": "why the model is paused, a text of at most 500 characters",
}

WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"


def _clean(name: str) -> str:
    """The Hub's rules for ids that a pattern without look-ahead cannot say."""
    if ".." in name or "--" in name or any(part.endswith((".", "-", ".git")) for part in name.split("/")):
        raise ValueError("'..' and '--', and '.', '-' or '.git' at the end, are not allowed in names")
    return name


def _different(items: list[Any]) -> list[Any]:
    if twice := [str(item) for item, count in Counter(items).items() if count > 1]:
        raise ValueError(f"{', '.join(twice)} is there more than once")
    return items


def _inside(revision: str) -> str:
    if ".." in revision:
        raise ValueError("'..' is not allowed")
    return revision


def _printable(text: str) -> str:
    if not all(character.isprintable() or character.isspace() for character in text):
        raise ValueError("control characters are not allowed")
    return text


def _template(name: str) -> str:
    if name.count("{name}") != 1 or "{" in name.replace("{name}", "") or "}" in name.replace("{name}", ""):
        raise ValueError("the template needs {name} in it, once, and no other braces")
    return name


def _about(key: str, **more: Any) -> Any:
    return Field(description=ABOUT[key], **more)


def _one_line(entry: object) -> object:
    return {"id": entry} if isinstance(entry, str) else entry


UNIQUE = {"uniqueItems": True}
CLOSED = ConfigDict(extra="forbid", strict=True)
HubId = Annotated[str, StringConstraints(pattern=f"^{WORD}/{WORD}$"), AfterValidator(_clean)]
HubName = Annotated[str, StringConstraints(pattern=f"^{WORD}$"), AfterValidator(_clean)]
Template = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._{}-]{1,96}$"), AfterValidator(_template)]
Decibel = Annotated[float, Field(gt=0, le=200, allow_inf_nan=False)]
Lengths = Annotated[
    list[Annotated[int, Field(ge=LEAST_LENGTH, le=8192)]],
    Field(min_length=1, max_length=8, json_schema_extra=UNIQUE),
    AfterValidator(_different),
]
Variants = Annotated[list[Variant], Field(min_length=1, json_schema_extra=UNIQUE), AfterValidator(_different)]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,254}$"), AfterValidator(_inside)]
License = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{0,95}$")]
Reason = Annotated[str, StringConstraints(pattern=r"\S", max_length=500), AfterValidator(_printable)]


@with_config(CLOSED)
class GatesKeys(TypedDict, total=False):
    rewrite: Annotated[Decibel, _about("rewrite")]
    float16: Annotated[Decibel, _about("float16")]
    bits8: Annotated[Decibel, _about("bits8")]
    bits6: Annotated[Decibel, _about("bits6")]
    bits4: Annotated[Decibel, _about("bits4")]
    fall: Annotated[Decibel, _about("fall")]


@with_config(CLOSED)
class PublishKeys(TypedDict, total=False):
    organization: Annotated[HubName, _about("organization")]
    name: Annotated[HubName, _about("name")]


@with_config(CLOSED)
class PublishDefaults(TypedDict, total=False):
    organization: Annotated[HubName, _about("organization")]
    name: Annotated[Template, _about("name")]


class Shared(TypedDict, total=False):
    task: Annotated[Task, _about("task")]
    lengths: Annotated[Lengths, _about("lengths")]
    variants: Annotated[Variants, _about("variants")]
    gates: Annotated[GatesKeys, _about("gates")]
    target: Annotated[Literal["coreml"], _about("target")]


@with_config(CLOSED)
class Defaults(Shared, total=False):
    publish: Annotated[PublishDefaults, _about("publish")]


PAUSED_NEEDS_REASON: JsonDict = {
    "if": {"properties": {"status": {"const": "paused"}}, "required": ["status"]},
    "then": {"required": ["reason"]},
    "else": {"properties": {"reason": False}},
}


@with_config(ConfigDict(**CLOSED, json_schema_extra=PAUSED_NEEDS_REASON))
class Entry(Shared, total=False):
    id: Required[Annotated[HubId, _about("id")]]
    revision: Annotated[Revision, _about("revision")]
    license: Annotated[License, _about("license")]
    major: Annotated[Annotated[int, Field(ge=1, le=999)], _about("major")]
    publish: Annotated[PublishKeys, _about("publish")]
    status: Annotated[Literal["active", "paused"], _about("status")]
    reason: Annotated[Reason, _about("reason")]


@with_config(CLOSED)
class Manifest(TypedDict, total=False):
    schema: Annotated[Literal[1], _about("schema")]
    defaults: Annotated[Defaults, _about("defaults")]
    models: Required[
        Annotated[
            list[Annotated[Entry, BeforeValidator(_one_line, json_schema_input_type=HubId | Entry)]],
            _about("models"),
        ]
    ]


MANIFEST = TypeAdapter(Manifest)
HUB_ID = TypeAdapter(HubId)
# The keys of each mapping, by the key that it is the value of.
KEYS: dict[str, list[str]] = {
    "": list(Manifest.__annotations__),
    "defaults": list(Defaults.__annotations__),
    "models": list(Entry.__annotations__),
    "gates": list(GatesKeys.__annotations__),
    "publish": list(PublishKeys.__annotations__),
}


def json_schema() -> dict[str, Any]:
    """JSON Schema of a manifest file, for editors; manifest.schema.json is this."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **MANIFEST.json_schema()}


def is_hub_id(text: str) -> bool:
    try:
        HUB_ID.validate_python(text)
    except ValidationError:
        return False
    return True


if __name__ == "__main__":
    json.dump(json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
