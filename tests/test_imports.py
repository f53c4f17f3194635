"""Who may import what: downwards only, and each heavy library in its own few places."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. A module may import its own layer and those below; steps never one another.
LAYERS = (
    ("checksums", "disk", "errors", "pace", "progress", "psnr", "records"),
    (
        "ane",
        "attempts",
        "blobs",
        "compress",
        "connection",
        "coreml",
        "gate",
        "hub",
        "interface",
        "keys",
        "layout",
        "licenses",
        "localhub",
        "lower",
        "manifest",
        "measurements",
        "mil",
        "package",
        "pin",
        "provenance",
        "release",
        "runtime",
        "signature",
        "waves",
    ),
    ("families", "sentence"),
    ("reference",),
    ("protocol", "rewrite"),
    ("audit", "condition", "greedy", "limits", "mixed"),
    ("card", "export", "plan", "publish", "source", "verify"),
    ("forecast",),
    (
        "asked",
        "cli",
        "demo",
        "doctor",
        "launchd",
        "maintain",
        "measure",
        "nights",
        "preview",
        "rebuild",
        "recheck",
        "room",
        "site",
        "state",
        "survey",
        "terminal",
        "flows",
    ),
)
STEPS = LAYERS[6]

ONLY_IN = {
    "prefect": ("flows",),
    "coremltools": ("coreml",),
    "transformers": ("reference",),
    "huggingface_hub": ("card", "connection", "hub", "reference", "runtime"),
    "hf_xet": ("localhub",),
    "matplotlib": ("card",),
    "model_signing": ("signature",),
    "tokenizers": ("runtime",),
}


def modules() -> Iterator[tuple[str, Path]]:
    """(name in LAYERS, file) of everything that is installed."""
    for path in sorted([*ROOT.glob("hft2ane/**/*.py"), *ROOT.glob("flows/**/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield (parts[0] if parts[0] == "flows" else parts[1]), path


def imported(path: Path) -> set[str]:
    """Dotted names of all imports, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """The modules of LAYERS that `path` imports."""
    found = {"flows" if name.startswith("flows") else name.split(".")[1] for name in imported(path)
             if name.startswith(("hft2ane.", "flows"))}  # fmt: skip
    return found & {name for layer in LAYERS for name in layer}


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if m[0] != "__init__"], ids=str)
def test_imports_go_downwards(name: str, path: Path) -> None:
    for other in ours(path) - {name}:
        assert level(other) <= level(name), f"{path.name} imports {other} from above it"
        assert not (name in STEPS and other in STEPS), f"the step {name} imports the step {other}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_has_its_places(library: str) -> None:
    users = {name for name, path in modules() if any(i.split(".")[0] == library for i in imported(path))}
    assert users == set(ONLY_IN[library])


LIGHT = (
    "manifest.read",
    "plan",
    "survey",
    "hub",
    "source",
    "publish",
    "card",
    "layout",
    "keys",
    "licenses",
    "measurements",
    "signature",
    "site",
    "cli",
    "terminal.answers",
    "terminal.families",
    "terminal.lint",
    "terminal.night",
    "terminal.package",
    "terminal.report",
    "demo",
    "families",
    "forecast",
    "asked",
    "preview",
)


def test_the_light_half_brings_no_heavy_library() -> None:
    """In a process where importing one of them fails, as on a machine that does not have them."""
    heavy = ("torch", "coremltools", "transformers", "numpy", "matplotlib", "prefect", "safetensors", "tokenizers")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy!r}))\n" + "".join(
        f"import hft2ane.{name}\n" for name in LIGHT
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
