"""What apps hold on to in a release: names of files, functions, inputs and outputs, shapes, labels.

Within a major version none of it changes or goes away; more may come.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hft2ane import records
from hft2ane.records.recipe import Recipe
from hft2ane.records.release import Conversion


@dataclass(frozen=True)
class Interface:
    """`functions`: of each package's file, by name, what goes in and out; `default`: the one that runs unnamed."""

    major: int
    functions: Mapping[str, Mapping[str, frozenset[str]]]
    default: Mapping[str, str]
    labels: tuple[str, ...]


def of(conversion: Conversion) -> Interface:
    found = read(records.dump(conversion))
    assert found is not None
    return found


def read(record: bytes) -> Interface | None:
    """Of a conversion.json of any schema that names its packages; None: of one that does not."""
    try:
        found = json.loads(record)
        packages = {package["file"]: package for package in found["packages"]}
        return Interface(
            major=int(found.get("major", 1)),
            functions={
                file: {function["name"]: frozenset(_ports(function)) for function in package["functions"]}
                for file, package in packages.items()
            },
            default={file: package["default_function"] for file, package in packages.items()},
            labels=tuple(found["labels"]),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _ports(function: Mapping[str, Any]) -> Iterator[str]:
    for way in ("inputs", "outputs"):
        for port in function[way]:
            yield f"{way[:-1]} {port['name']} {port['dtype']} {'×'.join(map(str, port['shape']))}"


def breaks(old: Interface, new: Interface) -> list[str]:
    """What apps that were made for `old` would miss in `new`, in words."""
    found = []
    for file, functions in old.functions.items():
        if file not in new.functions:
            found.append(f"{file} is gone")
            continue
        for name, ports in functions.items():
            now = new.functions[file].get(name)
            if now is None:
                found.append(f"{file} has no function {name}")
            elif now != ports:
                found.append(f"{name} of {file} has {_listed(now - ports)} instead of {_listed(ports - now)}")
        if new.default[file] != old.default[file]:
            found.append(f"{file} runs {new.default[file]} instead of {old.default[file]} when none is named")
    if old.labels != new.labels:
        found.append("the labels are others")
    return found


def _listed(ports: frozenset[str]) -> str:
    return ", ".join(sorted(ports)) or "nothing"


def planned(old: Conversion, recipe: Recipe) -> list[str]:
    """As far as a recipe tells what `breaks` will say of its release."""
    found = [f"{each.file} is gone" for each in old.packages if each.variant not in recipe.variants]
    if recipe.task not in (None, old.task):
        found.append(f"the task is {recipe.task} instead of {old.task}")
    before, now = set(old.recipe.lengths), set(recipe.lengths)
    if gone := sorted(before - now):
        found.append(f"no function takes {', '.join(map(str, gone))} tokens")
    elif before != now and len(before) == 1:
        found.append("a package of several lengths names its functions, one of a single length does not")
    elif max(before) != max(now):
        found.append(f"the function that runs when none is named takes {max(now)} tokens instead of {max(before)}")
    return found
