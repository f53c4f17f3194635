"""The three keys that say whether a release is still what it would be if it were made now.

convert key: what shapes the packages · verify key: what was measured, and how · card key: what the card says."""

import ast
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hft2ane import layout
from hft2ane.errors import ToolchainMismatch
from hft2ane.records import dump
from hft2ane.records.job import Job
from hft2ane.records.mac import Measurement
from hft2ane.records.recipe import Recipe, Wanted
from hft2ane.records.source import CardFields, RemoteFile, Upstream

# How every figure is taken: inputs, seed, formula, which positions count. It changes when any of them does.
PROTOCOL = "hft2ane-psnr-2"
# Our evaluator on the saved package, each op in the precision that the program declares.
BACKEND = "mil-declared"

TOOLS = ("coremltools", "numpy", "torch", "transformers")
PIN = re.compile(r"""\s*([\w.-]+)\s*==\s*([^\s;,*]+)\s*;.*\bextra\s*==\s*['"]convert['"].*""")

CODE = Path(__file__).parent
# The modules that shape the graph, besides the bricks and the family: they say which tensors, which task, which ops.
SHAPING = (
    "audit",
    "compress",
    "condition",
    "export",
    "lower",
    "mil/format",
    "mil/signatures",
    "mil/write",
    "mixed",
    "package",
    "protocol",
    "psnr",
    "reference",
    "rewrite",
    "sentence",
)


def toolchain() -> dict[str, str]:
    """The versions that the [convert] extra pins, by package, e.g. {"torch": "2.13.0", …}; nothing of it is imported.

    ToolchainMismatch: hft2ane is not installed, or its pins are gone."""
    try:
        lines = importlib.metadata.requires("hft2ane") or []
    except importlib.metadata.PackageNotFoundError as err:
        raise ToolchainMismatch(
            "hft2ane is not installed, so its pinned versions are unknown: pip install . in its folder"
        ) from err
    pins = {match[1].lower(): match[2] for line in lines if (match := PIN.fullmatch(line))}
    if missing := [tool for tool in TOOLS if tool not in pins]:
        raise ToolchainMismatch(
            f"the installed hft2ane pins no version of {', '.join(missing)} in its [convert] extra: "
            "install it again, pip install . in its folder"
        )
    return {tool: pins[tool] for tool in TOOLS}


def code_digest(family: str) -> str:
    """Digest of the source text that shapes the graph of this family: a model_type, and for a pair those of its parts,
    `encoder-decoder/bert/bert`."""
    return _digest_files([*(CODE / "ane").glob("*.py"), *_families(family), *(CODE / f"{name}.py" for name in SHAPING)])


def implementation_digest(family: str) -> str:
    """Digest of all source text that a model of this family, or pair, meets: everything but other families."""
    other = {*(CODE / "families").glob("*.py")} - _families(family)
    return _digest_files({path for path in CODE.glob("**/*") if path.suffix in (".py", ".j2")} - other)


def subject(job: Job, implementation: str, versions: Mapping[str, str]) -> str:
    """What a try at this job is made of: if none of it has changed, the same will come of it."""
    return _digest(
        {
            "entry": [asdict(job.recipe), asdict(job.gates), job.license],
            "files": {file.path: file.oid for file in job.files},
            "code": implementation,
            "versions": dict(versions),
        }
    )


def today(protocol: str = PROTOCOL) -> str:
    """Digest of all that a plan depends on besides the world: our source text, the locked versions, the protocol."""
    code = _digest_files(path for path in CODE.glob("**/*") if path.suffix in (".py", ".j2"))
    return _digest({"code": code, "versions": toolchain(), "protocol": protocol, "backend": BACKEND})


def settled(one: Wanted, found: Upstream, head: str, today: str, macs: Mapping[str, str]) -> str:
    """Digest of all that decides what becomes of a model whose release is at the commit `head`: a plan is a function
    of it. A commit stands for its files. `macs`: digests of the measurements that there are of it."""
    entry = {name: value for name, value in asdict(one).items() if name != "where"}
    upstream = [found.id, found.commit, asdict(found.card)]
    return _digest({"entry": entry, "upstream": upstream, "head": head, "today": today, "macs": dict(macs)})[:32]


def _families(family: str) -> set[Path]:
    """The files of a family, or of a pair's."""
    return set().union(*(_family_files(name.replace("-", "_")) for name in family.split("/")))


def _family_files(name: str) -> set[Path]:
    """The file of a family and those that it is made on, which may be those of other families."""
    folder = CODE / "families"
    found, asked = {folder / "__init__.py"}, [folder / f"{name}.py"]
    while asked:
        path = asked.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hft2ane.families"):
                others = [str(node.module).rpartition(".")[2], *(alias.name for alias in node.names)]
                asked += [folder / f"{other}.py" for other in others]
    return found


def presentation_digest() -> str:
    """Digest of the code and the templates that make the card, and of what reads a release's small files for it."""
    card = CODE / "card"
    return _digest_files([*card.glob("*.py"), *(card / "templates").glob("*"), CODE / "runtime" / "settings.py"])


def convert_key(
    files: Sequence[RemoteFile],
    recipe: Recipe,
    family: str,
    *,
    code: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """`files` as `layout.select` gives them, in any order; README and licence do not count. `code` and `versions`: for
    asking what the key would be with others than the present ones."""
    return _digest(
        {
            "files": {file.path: file.oid for file in layout.shaping(files)},
            "recipe": asdict(recipe),
            "family": family,
            "code": code_digest(family) if code is None else code,
            "versions": dict(toolchain() if versions is None else versions),
        }
    )


def verify_key(
    packages: Mapping[str, str], protocol: str, backend: str, macs: Mapping[str, str] = MappingProxyType({})
) -> str:
    """`packages`: the digest of each, by what it is (`Package.what`). `macs`: of the measurements that the report has
    besides, by chip and OS build; their units are in them."""
    value = {"packages": dict(packages), "protocol": protocol, "backend": backend}
    return _digest({**value, "macs": dict(macs)} if macs else value)


def measurement_digest(measurement: Measurement) -> str:
    return hashlib.sha256(dump(measurement)).hexdigest()


def card_key(card: CardFields, legal: Sequence[RemoteFile], verify_key: str, presentation: str) -> str:
    return _digest(
        {
            "card": asdict(card),
            "legal": {file.path: file.oid for file in legal},
            "verify": verify_key,
            "presentation": presentation,
        }
    )


def canonical(value: Mapping[str, Any]) -> bytes:
    """The JSON text that keys are digests of: sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(value: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def _digest_files(paths: Iterable[Path]) -> str:
    """Over path and text of those that exist; line ends do not count, because git may change them."""
    texts = {
        path.relative_to(CODE).as_posix(): path.read_bytes().replace(b"\r\n", b"\n") for path in paths if path.is_file()
    }
    return _digest({name: hashlib.sha256(text).hexdigest() for name, text in texts.items()})
