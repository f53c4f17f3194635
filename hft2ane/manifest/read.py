"""Read manifests/*.yaml into Wanted records, or say everything that is wrong with them at once, by file and line."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import (
    ValidationError,
)
from pydantic_core import ErrorDetails

from hft2ane.errors import BadInput, ManifestError
from hft2ane.manifest.document import File, Place, load, text_of
from hft2ane.manifest.schema import (
    ABOUT,
    MANIFEST,
    NAME_TEMPLATE,
    Defaults,
    Entry,
    GatesKeys,
    PublishDefaults,
    PublishKeys,
    Shared,
    is_hub_id,
)
from hft2ane.manifest.words import worded
from hft2ane.records.recipe import Gates, Recipe, Wanted


def read_manifests(paths: Sequence[Path], organization: str | None = None) -> list[Wanted]:
    """What the manifests ask for, defaults applied, in the order written. `paths`: files, or folders of *.yaml.

    `organization` takes the place of every organisation in them, for rehearsals. ManifestError: all problems of all
    files; BadInput: `organization` cannot be one."""
    if organization is not None and not is_hub_id(f"{organization}/x"):
        raise BadInput(f"{organization!r} cannot be an organisation: it takes {ABOUT['organization']}")
    files = [_read(path) for path in listed(paths)]
    found = [(file, line, wanted) for file in files for line, wanted in _wanted(file, organization)]
    _refuse_clashes(found)
    if problems := [(f"{file.name}:{line}", text) for file in files for line, text in sorted(file.problems)]:
        raise ManifestError(problems)
    return [wanted for _, _, wanted in found]


def listed(paths: Sequence[Path]) -> list[Path]:
    """The manifest files, each once, a folder's in order of name; a folder that has none stands for itself."""
    files = [file for path in paths for file in (sorted(path.glob("*.y*ml")) or [path])]
    return list({_real(file): file for file in files}.values())


def _real(path: Path) -> Path:
    """Where links lead; unlike `Path.resolve`, also of those that lead in circles."""
    return Path(os.path.realpath(path))


def _read(path: Path) -> File:
    file = File("".join(c if c.isprintable() else "?" for c in path.as_posix()))
    if path.as_posix() != file.name:
        file.refuse(1, "its name has characters that cannot be printed: rename it")
    if not _real(path).is_relative_to(_real(path.parent)):
        file.refuse(1, "a link that leads out of its folder: put the file itself there")
        return file
    if (text := text_of(path, file)) is None or (raw := load(text, file)) is None:
        return file
    errors = _errors(raw)
    for error in errors:
        file.refuse(file.line(error["loc"]), worded(error, file))
    # What is left without the faulty keys is still compared with the other entries, so that all problems show at once.
    file.entries = _prune(raw, [error["loc"] for error in errors])
    file.content = MANIFEST.validate_python(raw)
    return file


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


def _wanted(file: File, organization: str | None) -> Iterator[tuple[int, Wanted]]:
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


def _repo(entry: Entry, place: Place, file: File, organization: str | None) -> str:
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
    if not is_hub_id(repo):
        line = file.line(place)
        file.refuse(line, f"would be published as {repo}, which cannot be a Hub id: set `publish: {{name: …}}`")
    return repo


def _check_reason(entry: Entry, place: Place, file: File) -> None:
    written = (*place, "reason") in file.lines
    if entry.get("status") == "paused" and not written:
        file.refuse(file.line((*place, "status")), "status: paused needs a `reason:`, which the plan shows")
    if written and entry.get("status") != "paused" and ((*place, "status") not in file.lines or "status" in entry):
        file.refuse(
            file.line((*place, "reason")), "`reason:` says why a model is paused: add `status: paused`, or remove it"
        )


def _refuse_clashes(found: Sequence[tuple[File, int, Wanted]]) -> None:
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
