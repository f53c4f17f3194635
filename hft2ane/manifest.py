"""Read manifests/*.yaml into Wanted records, or say everything that is wrong with them at once, by file and line.

    defaults: {publish: {organization: my-org}, lengths: [128]}
    models:
    - sentence-transformers/all-MiniLM-L6-v2
    - {id: owner/name, task: fill-mask, license: apache-2.0, status: paused, reason: waits for the author}

Editors check the same rules while one types: `python -m hft2ane.manifest > hft2ane/manifest.schema.json`.
"""

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Required, cast

import yaml
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
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from hft2ane.errors import BadInput, ManifestError
from hft2ane.records.recipe import LEAST_LENGTH, VARIANTS, Gates, Recipe, Task, Variant, Wanted

MAX_BYTES = 1_000_000
MAX_DEPTH = 10  # a right manifest has 5 levels
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

Place = tuple[str | int, ...]  # ("models", 3, "lengths", 0)


def schema() -> dict[str, Any]:
    """JSON Schema of a manifest file, for editors; manifest.schema.json is this."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **MANIFEST.json_schema()}


def read_manifests(paths: Sequence[Path], organization: str | None = None) -> list[Wanted]:
    """What the manifests ask for, defaults applied, in the order written. `paths`: files, or folders of *.yaml.

    `organization` takes the place of every organisation in them, for rehearsals. ManifestError: all problems of all
    files; BadInput: `organization` cannot be one."""
    if organization is not None and not _is_hub_id(f"{organization}/x"):
        raise BadInput(f"{organization!r} cannot be an organisation: it takes {ABOUT['organization']}")
    files = [_read(path) for path in _files(paths)]
    found = [(file, line, wanted) for file in files for line, wanted in _wanted(file, organization)]
    _refuse_clashes(found)
    if problems := [(f"{file.name}:{line}", text) for file in files for line, text in sorted(file.problems)]:
        raise ManifestError(problems)
    return [wanted for _, _, wanted in found]


@dataclass
class _File:
    """A manifest as far as it could be read. `lines` has the line of every key and list item, `texts` each scalar as
    it is written with what YAML takes it for."""

    name: str
    content: Manifest = field(default_factory=lambda: Manifest(models=[]))
    entries: list[int] = field(default_factory=list)  # where content's models are in the file's list
    lines: dict[Place, int] = field(default_factory=dict)
    texts: dict[Place, tuple[str, str]] = field(default_factory=dict)
    problems: set[tuple[int, str]] = field(default_factory=set)
    end: int = 1  # the last line

    def line(self, place: Place) -> int:
        """The line of what is at `place`, or of the nearest thing around it that is in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def refuse(self, line: int, text: str) -> None:
        self.problems.add((min(line, self.end), text))


def _files(paths: Sequence[Path]) -> list[Path]:
    """The manifest files, each once, a folder's in order of name; a folder that has none stands for itself."""
    files = [file for path in paths for file in (sorted(path.glob("*.y*ml")) or [path])]
    return list({file.resolve(): file for file in files}.values())


def _read(path: Path) -> _File:
    file = _File(path.as_posix())
    if (text := _text(path, file)) is None or (raw := _load(text, file)) is None:
        return file
    errors = _errors(raw)
    for error in errors:
        file.refuse(file.line(error["loc"]), _words(error, file))
    # What is left without the faulty keys is still compared with the other entries, so that all problems show at once.
    file.entries = _prune(raw, [error["loc"] for error in errors])
    file.content = MANIFEST.validate_python(raw)
    return file


def _text(path: Path, file: _File) -> str | None:
    if path.is_dir():
        file.refuse(1, "a folder without *.yaml: give a manifest file, or a folder of them")
        return None
    if path.suffix != ".yaml":
        file.refuse(1, "a manifest's name ends in .yaml: rename it")
        return None
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            file.refuse(1, f"larger than {MAX_BYTES // 1_000_000} MB, which no manifest is: split it")
            return None
        file.end = max(1, len(data.splitlines()))
        return data.decode()
    except UnicodeDecodeError as err:
        file.refuse(data[: err.start].count(b"\n") + 1, "not UTF-8 text: save the file as UTF-8")
    except OSError as err:
        file.refuse(1, f"cannot be read ({err.strerror}): give a manifest file, or a folder of them")
    return None


class _Composer(yaml.SafeLoader):
    """PyYAML's node tree without what makes YAML dangerous: aliases, tags and unlimited depth."""

    def __init__(self, text: str, file: _File) -> None:
        self.file = file
        self.depth = 0
        super().__init__(text)

    def next_event(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.next_event()
        mark = event.start_mark
        line = mark.line + 1
        if event.anchor is not None:
            self.file.refuse(line, "anchors and aliases (&x, *x) are not read: write it out, or put it in `defaults:`")
            event.anchor = None
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode("tag:yaml.org,2002:null", "", mark, mark)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.file.refuse(line, f"the tag {tag!r} is not read: write a plain value")
            event.tag = None
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply for a manifest", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _load(text: str, file: _File) -> dict[str, Any] | None:
    """The file's plain values, lines and texts noted; None when there is nothing to go on with."""
    try:
        composer = _Composer(text, file)
        node = composer.get_node() if composer.check_node() else None
        if composer.check_node():
            line = composer.next_event().start_mark.line + 1
            file.refuse(line, "a second document begins: a manifest is one, remove the `---`")
    except yaml.reader.ReaderError as err:
        file.refuse(
            text[: err.position].count("\n") + 1, f"the character {chr(err.character)!r} is not allowed in YAML"
        )
        return None
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        file.refuse(mark.line + 1 if mark else 1, f"not YAML that can be read: {err.problem}")
        return None
    except (ValueError, OverflowError):  # PyYAML on character codes and version numbers out of range
        file.refuse(composer.line + 1, "not YAML that can be read: a number or character code out of range")
        return None
    if node is None:
        file.refuse(1, "empty: a manifest needs at least `models:` and a list below it")
    elif not isinstance(node, yaml.MappingNode):
        file.refuse(node.start_mark.line + 1, "a manifest is a mapping with `models:` in it, and `defaults:` if wanted")
    else:
        return cast(dict[str, Any], _value(node, (), file))
    return None


KINDS = {"null": "nothing", "bool": "true or false", "int": "a number", "float": "a number", "timestamp": "a date"}
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
FLOAT = re.compile(r"-?[0-9]{1,18}\.[0-9]{0,18}")


@dataclass(frozen=True)
class _Other:
    """A scalar that YAML takes for something that no key takes: a date, base 8, 16 or 60, infinity."""

    text: str


def _value(node: yaml.Node, place: Place, file: _File) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_noted(item, item, (*place, index), file) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, file)
    kind = node.tag.rpartition(":")[2]
    file.texts[place] = (kind, node.value)
    return _scalar(kind, node.value)


def _mapping(node: yaml.MappingNode, place: Place, file: _File) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            file.refuse(line, "a list or mapping cannot be a key")
        elif not key.value.isprintable():
            file.refuse(line, f"the key {key.value[:100]!r} has characters that cannot be printed")
        elif key.value in values:
            file.refuse(line, f"the key {key.value!r} is there twice, first at line {file.lines[(*place, key.value)]}")
        else:
            values[key.value] = _noted(key, value, (*place, key.value), file)
    return values


def _noted(mark: yaml.Node, node: yaml.Node, place: Place, file: _File) -> object:
    file.lines[place] = mark.start_mark.line + 1
    return _value(node, place, file)


def _scalar(kind: str, text: str) -> object:
    match kind:
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() in ("yes", "true", "on")
        case "int" if INTEGER.fullmatch(text):
            return int(text)
        case "float" if FLOAT.fullmatch(text):
            return float(text)
        case _:
            return _Other(text)


def _errors(raw: dict[str, Any]) -> list[ErrorDetails]:
    try:
        MANIFEST.validate_python(raw)
    except ValidationError as err:
        return err.errors(include_url=False, include_context=True)
    return []


def _prune(raw: dict[str, Any], places: Sequence[Place]) -> list[int]:
    """Take out of `raw` what is at fault, so that the rest is a valid manifest; the indices of the models that stay."""
    dropped = set()
    for place in places:
        match place:
            case ("models", int(index), str(key), *_) if key != "id":
                raw["models"][index].pop(key, None)
            case ("models", int(index), *_):
                dropped.add(index)
            case ("defaults", str(key), *_):
                raw["defaults"].pop(key, None)
            case (str(key), *_):
                raw.pop(key, None)
    models = raw.get("models", [])
    kept = [index for index in range(len(models)) if index not in dropped]
    raw["models"] = [models[index] for index in kept]
    return kept


def _words(error: ErrorDetails, file: _File) -> str:
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
            return f"{spot}: {_shown(place, error, file)} will not do; it takes {ABOUT[key]}"


def _shown(place: Place, error: ErrorDetails, file: _File) -> str:
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
    else:
        near = _nearest(key, known)
    within = f" in `{holder}`" if holder else ""
    return f"unknown key {key[:100]!r}{within}{near}; known: {', '.join(known)}"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:100].lower().replace("_", "-"), known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _wanted(file: _File, organization: str | None) -> Iterator[tuple[int, Wanted]]:
    """The file's entries with its defaults applied, as far as they can be read, each with its line."""
    defaults = file.content.get("defaults", Defaults())
    for index, entry in zip(file.entries, file.content["models"], strict=True):
        place: Place = ("models", index)
        line = file.line(place)
        _check_reason(entry, place, file)
        repo = _repo(entry, place, file, organization)
        both = cast(Shared, {**defaults, **entry})
        gates = cast(GatesKeys, {**defaults.get("gates", {}), **entry.get("gates", {})})
        yield (
            line,
            Wanted(
                id=entry["id"],
                repo=repo,
                where=f"{file.name}:{line}",
                revision=entry.get("revision", Wanted.revision),
                recipe=Recipe(
                    task=both.get("task"),
                    lengths=tuple(sorted(both.get("lengths", Recipe.lengths))),
                    variants=tuple(both.get("variants", Recipe.variants)),
                    target=both.get("target", Recipe.target),
                ),
                gates=Gates(**gates),
                license=entry.get("license"),
                paused=" ".join(entry["reason"].split()) if "reason" in entry else None,
                major=entry.get("major", Wanted.major),
            ),
        )


def _repo(entry: Entry, place: Place, file: _File, organization: str | None) -> str:
    """`<organization>/<name>`; with `?` for an organisation that nobody names, or for all of it if its keys are at
    fault, which is told in both cases."""
    defaults = file.content.get("defaults", Defaults())
    faulty_here = (*place, "publish") in file.lines and "publish" not in entry
    if faulty_here or (("defaults", "publish") in file.lines and "publish" not in defaults):
        return f"?/{entry['id']}"
    here, general = entry.get("publish", PublishKeys()), defaults.get("publish", PublishDefaults())
    name = here.get("name") or general.get("name", NAME_TEMPLATE).replace("{name}", entry["id"].split("/")[1])
    owner = organization or here.get("organization") or general.get("organization")
    if owner is None:
        line = file.line(("defaults", "publish"))
        file.refuse(line, "no organisation to publish to: add `publish: {organization: …}` to `defaults:`")
        return f"?/{name}"
    repo = f"{owner}/{name}"
    if not _is_hub_id(repo):
        line = file.line(place)
        file.refuse(line, f"would be published as {repo}, which cannot be a Hub id: set `publish: {{name: …}}`")
    return repo


def _check_reason(entry: Entry, place: Place, file: _File) -> None:
    written = (*place, "reason") in file.lines
    if entry.get("status") == "paused" and not written:
        file.refuse(file.line((*place, "status")), "status: paused needs a `reason:`, which the plan shows")
    if written and entry.get("status") != "paused" and ((*place, "status") not in file.lines or "status" in entry):
        file.refuse(
            file.line((*place, "reason")), "`reason:` says why a model is paused: add `status: paused`, or remove it"
        )


def _refuse_clashes(found: Sequence[tuple[_File, int, Wanted]]) -> None:
    """Ids and published repos are unique, whatever the case of their letters: the Hub ignores it."""
    ids: dict[str, Wanted] = {}
    repos: dict[str, Wanted] = {}
    for file, line, wanted in found:
        first = ids.setdefault(wanted.id.lower(), wanted)
        if first is not wanted:
            file.refuse(line, f"{wanted.id} is already asked for at {first.where}: keep one of them")
            continue
        first = repos.setdefault(wanted.repo.lower(), wanted)
        if first is not wanted:
            file.refuse(
                line,
                f"would be published as {wanted.repo.removeprefix('?/')}, like {first.id} at {first.where}: "
                "give one of them another `publish: {name: …}`",
            )
    for file, line, wanted in found:
        if wanted.repo.lower() in ids:
            file.refuse(
                line, f"would be published over {wanted.repo}, which is an original: set `publish: {{name: …}}`"
            )


def _is_hub_id(text: str) -> bool:
    try:
        HUB_ID.validate_python(text)
    except ValidationError:
        return False
    return True


if __name__ == "__main__":
    json.dump(schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
