"""The YAML between the two `---` at the top of a README: read safely, and judged as the Hub judges it."""

import math
import re
from typing import Any

import yaml

BLOCK = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
LIMIT = 256 * 1024


class BadFrontMatter(ValueError):
    """There is front matter, and it is not a mapping in plain YAML."""


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases: a few lines of them are enough to fill all memory once written as JSON."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (`*name`) are not allowed here")
        return super().compose_node(parent, index)


def read(readme: str) -> dict[str, Any] | None:
    """The front matter, as JSON can hold it; None if there is none. BadFrontMatter: not a YAML mapping."""
    found = BLOCK.match(readme)
    if not found:
        return None
    if len(found[1]) > LIMIT:
        raise BadFrontMatter(f"the metadata is longer than {LIMIT} characters")
    try:
        value = yaml.load(found[1], PlainLoader)
        plain = as_json(value if value is not None else {})
    except yaml.YAMLError as err:
        raise BadFrontMatter(f"invalid YAML: {' '.join(str(err).split())}") from err
    except (RecursionError, ValueError) as err:  # nested too deep; a date such as 2024-02-31
        raise BadFrontMatter(f"invalid YAML: {err}") from err
    if not isinstance(plain, dict):
        raise BadFrontMatter("the metadata is not a mapping of `key: value` lines")
    return plain


def as_json(value: object) -> Any:
    """Dates, bytes and other things that only YAML has become text."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def judge(readme: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README's metadata."""
    try:
        card = read(readme)
    except BadFrontMatter as err:
        return [str(err)], []
    if not card:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card.get("license", ""), str):
        return [f'"license" must be a string, not {card["license"]!r}'], []
    return [], []
