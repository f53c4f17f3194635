"""The original: a model repo at one commit, and source.json."""

from dataclasses import dataclass, field
from typing import Literal

from hft2ane.records import SCHEMA, STRICT


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo at one commit. `oid`: SHA-256 of the content when `lfs`, else git's blob SHA-1."""

    __pydantic_config__ = STRICT
    path: str
    size: int
    oid: str
    lfs: bool


@dataclass(frozen=True)
class CardFields:
    """What our card takes over from the upstream card's front matter, and nothing else of it."""

    __pydantic_config__ = STRICT
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None


def card_fields(front_matter: object) -> CardFields:
    """What we take over of a card's front matter; a value of another type than it should have counts as not given."""
    card = front_matter if isinstance(front_matter, dict) else {}
    text = {key: value for key, value in card.items() if isinstance(value, str) and value.strip()}
    language = card.get("language")
    languages = language if isinstance(language, list) else [language]
    return CardFields(
        license=text.get("license"),
        license_name=text.get("license_name"),
        license_link=text.get("license_link"),
        language=tuple(name for name in languages if isinstance(name, str) and name.strip()),
        pipeline_tag=text.get("pipeline_tag"),
    )


@dataclass(frozen=True)
class Upstream:
    """A model repo as the Hub shows it at one commit. `id` is its present name: a renamed repo answers by that."""

    id: str
    commit: str
    files: tuple[RemoteFile, ...]
    card: CardFields = field(default_factory=CardFields)


@dataclass(frozen=True)
class Source:
    """source.json: the pinned files are in source/, checked. `commit` of a local folder is `local`."""

    __pydantic_config__ = STRICT
    id: str
    commit: str
    files: tuple[RemoteFile, ...]
    card: CardFields
    schema: Literal[1] = SCHEMA
