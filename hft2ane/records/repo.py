"""What there is on the Hub: a repo of ours, whose record may be of no use, and whose a token is."""

from __future__ import annotations

from dataclasses import dataclass

from hft2ane.records.job import Cause
from hft2ane.records.source import RemoteFile, Upstream


def owner_of(repo: str) -> str:
    """Of `owner/name`."""
    return repo.partition("/")[0]


@dataclass(frozen=True)
class Repo:
    """A repo of ours at one commit. `id` is its present name."""

    id: str
    commit: str
    files: tuple[RemoteFile, ...]
    private: bool


@dataclass(frozen=True)
class Redo:
    """Something is published, but it cannot stay as it is; `why`, in one line."""

    why: str
    cause: Cause = "request"


@dataclass(frozen=True)
class Vanished:
    """The revision that a manifest pins is gone; `head` is what the repo has now."""

    revision: str
    head: Upstream


@dataclass(frozen=True)
class Listed:
    """A repo as the list of an organisation's repos has it."""

    commit: str
    tags: tuple[str, ...]
    private: bool


@dataclass(frozen=True)
class Account:
    """Whose a token is. `writes`: the users and organisations where it may make and write any repo; None: the Hub says
    nothing of it."""

    name: str
    writes: frozenset[str] | None
