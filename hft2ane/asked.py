"""What the manifests ask for, and what of it is otherwise than in a folder or at a commit: before the Hub is asked."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hft2ane.errors import BadInput, ManifestError
from hft2ane.manifest.read import listed, read_manifests
from hft2ane.plan import changes
from hft2ane.records.recipe import Wanted
from hft2ane.survey import wanted

Kind = Literal["new", "changed", "paused", "resumed"]


@dataclass(frozen=True)
class Change:
    """What is otherwise in one entry; `what` in words."""

    kind: Kind
    what: str


@dataclass(frozen=True)
class Changes:
    """What is otherwise in the manifests. `changed`: by id; `removed`: entries as they were, whose repos nobody wants
    any more; `unchanged`: how many entries are as before."""

    changed: Mapping[str, Change]
    removed: tuple[Wanted, ...]
    unchanged: int


@dataclass(frozen=True)
class Asked:
    """What the manifests say, before the Hub is asked. `models`: those to be shown. `changes`: what is otherwise than
    at `base`, None where nothing is compared, and all is shown. `unread`: changed files that lie below the manifests,
    and are none. `complete`: these are all models."""

    models: Sequence[Wanted]
    base: str | None
    changes: Changes | None
    unread: tuple[str, ...]
    notes: tuple[str, ...]
    complete: bool


def read(manifests: Sequence[Path], organization: str | None, only: Sequence[str] | None, base: str | None) -> Asked:
    """What these manifests say, and with `base`, a folder of manifests or a commit of this git repository, what of it
    is otherwise than there: than where HEAD left it, if it has gone on. ManifestError; BadInput: `base` is neither."""
    if base is None:
        return Asked(wanted(manifests, organization, only), None, None, (), (), complete=not only)
    commit, order = "", list(manifests)
    unread: tuple[str, ...] = ()
    if not (base and Path(base).is_dir()):
        found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")
        if not found:
            raise BadInput(f"--base {base!r} is neither a folder nor a commit of a git repository here: fetch it first")
        commit = (_git("merge-base", found.decode().strip(), "HEAD") or found).decode().strip()
        changed = touched(commit, manifests)
        files = {file.parent.resolve() / file.name: file for file in listed(manifests)}
        unread = tuple(sorted(os.path.relpath(each) for each in changed - files.keys()))
        # The changed ones last: of two entries for the same model, the later is told to go.
        order = [files[whole] for whole in sorted(files, key=lambda whole: whole in changed)]
    models = wanted(order, organization, only)
    notes: tuple[str, ...] = ()
    try:
        old = before(commit, manifests, organization) if commit else read_manifests([Path(base)], organization)
    except ManifestError as err:
        old, notes = [], (f"the manifests at {base} have problems, so every entry counts as new: {err}",)
    if only:
        old = [each for each in old if each.id in only]
    changes = compare(old, models)
    shown = [each for each in models if each.id in changes.changed]
    return Asked(shown, base, changes, unread, notes, complete=False)


def before(commit: str, manifests: Sequence[Path], organization: str | None) -> list[Wanted]:
    """What the manifests said at this commit, at the same paths."""
    with tempfile.TemporaryDirectory() as temporary:
        for path in manifests:
            inside = Path(os.path.relpath(path.resolve(), _root()))
            for name in _names("ls-tree", "-r", "-z", "--full-tree", "--name-only", commit, "--", inside.as_posix()):
                if Path(name) == inside or (Path(name).parent == inside and name.endswith((".yaml", ".yml"))):
                    copy = Path(temporary, name)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(_git("cat-file", "blob", f"{commit}:{name}") or b"")
        files = sorted(file for file in Path(temporary).rglob("*") if file.is_file())
        return read_manifests(files, organization) if files else []


def touched(commit: str, manifests: Sequence[Path]) -> set[Path]:
    """The files below these paths that are otherwise than at this commit, or not known to git."""
    paths = [path.resolve().as_posix() for path in manifests]
    changed = _names(
        "diff", "--name-only", "--no-relative", "--no-renames", "--diff-filter=d", "-z", commit, "--", *paths
    )
    new = _names("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", *paths)
    return {_root() / name for name in (*changed, *new)}


def _root() -> Path:
    return Path(os.fsdecode(_git("rev-parse", "--show-toplevel") or b"").rstrip("\n"))


def _names(*arguments: str) -> list[str]:
    return [os.fsdecode(name) for name in (_git(*arguments) or b"").split(b"\0") if name]


def _git(*arguments: str) -> bytes | None:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def compare(old: Sequence[Wanted], new: Sequence[Wanted]) -> Changes:
    """Entries are the same when their ids are, whatever file they stand in."""
    earlier = {each.id.lower(): each for each in old}
    changed = {}
    for each in new:
        was = earlier.get(each.id.lower())
        if was is None:
            changed[each.id] = Change("new", "new")
        elif was.paused is None and each.paused is not None:
            changed[each.id] = Change("paused", "paused")
        elif was.paused is not None and each.paused is None:
            changed[each.id] = Change("resumed", "; ".join(["no longer paused", *_differences(was, each)]))
        elif differences := list(_differences(was, each)):
            changed[each.id] = Change("changed", "; ".join(differences))
    repos = {each.repo.lower() for each in new}
    removed = tuple(each for each in old if each.repo.lower() not in repos)
    return Changes(changed, removed, len(new) - len(changed))


def _differences(old: Wanted, new: Wanted) -> Iterator[str]:
    names = ("id", "repo", "revision", "license", "major", "paused")
    yield from changes({name: getattr(old, name) for name in names}, {name: getattr(new, name) for name in names})
    yield from changes(asdict(old.recipe), asdict(new.recipe))
    yield from (f"gate {each}" for each in changes(asdict(old.gates), asdict(new.gates)))
