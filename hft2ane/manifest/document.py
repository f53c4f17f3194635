"""A manifest's YAML, without what makes YAML dangerous, and where everything stands in it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from hft2ane.manifest.schema import Manifest

MAX_BYTES = 1_000_000
MAX_DEPTH = 10  # a right manifest has 5 levels

Place = tuple[str | int, ...]  # ("models", 3, "lengths", 0)


@dataclass
class File:
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


def text_of(path: Path, file: File) -> str | None:
    if path.is_dir():
        file.refuse(1, "a folder without *.yaml: give a manifest file, or a folder of them")
        return None
    if path.suffix != ".yaml" and path.exists():
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

    def __init__(self, text: str, file: File) -> None:
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


def load(text: str, file: File) -> dict[str, Any] | None:
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
        file.refuse(mark.line + 1 if mark else 1, f"not YAML that can be read: {err.problem}{_mend(err)}")
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


def _mend(err: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in (err.problem or ""):
        return ": indent with spaces, not with tabs"
    if err.context and err.context_mark and ("flow" in err.context or "quoted" in err.context):
        return f": close the bracket or quote of line {err.context_mark.line + 1}"
    return ""


INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
FLOAT = re.compile(r"-?[0-9]{1,18}\.[0-9]{0,18}")


@dataclass(frozen=True)
class _Other:
    """A scalar that YAML takes for something that no key takes: a date, base 8, 16 or 60, infinity."""

    text: str


def _value(node: yaml.Node, place: Place, file: File) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_noted(item, item, (*place, index), file) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, file)
    kind = node.tag.rpartition(":")[2]
    file.texts[place] = (kind, node.value)
    return _scalar(kind, node.value)


def _mapping(node: yaml.MappingNode, place: Place, file: File) -> dict[str, object]:
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


def _noted(mark: yaml.Node, node: yaml.Node, place: Place, file: File) -> object:
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
