"""What the README says is there is there, and what is there it says."""

import re
from pathlib import Path

from hft2ane.families import catalogue
from hft2ane.terminal import markdown_families

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def tree() -> set[str]:
    """Paths named in the README's file tree."""
    block = README.split("## What is where", 1)[1].split("```")[1]
    named, folder = set(), ""
    for line in block.strip().splitlines():
        indent, names = re.match(r"( *)((?:\S+ )*\S+)(?:  .*)?$", line).groups()  # type: ignore[union-attr]
        for name in names.split(" "):
            named.add((folder if indent else "") + name)
        if not indent:
            folder = names
    return named


def test_the_tree_is_true() -> None:
    assert {name for name in tree() if not (ROOT / name).exists()} == set()


def test_the_tree_is_whole() -> None:
    files = {p.relative_to(ROOT).as_posix() for folder in ("hft2ane", "flows") for p in (ROOT / folder).glob("*.py")}
    folders = {f"{p.relative_to(ROOT).as_posix()}/" for p in (ROOT / "hft2ane").iterdir() if p.is_dir()}
    shown = {name for name in files | folders if "__" not in name and "egg-info" not in name}
    assert shown <= tree()


def test_the_table_of_families_is_that_of_the_registry() -> None:
    """To renew it: hft2ane families --markdown."""
    section = README.split("## What works", 1)[1].split("\n##")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert table == markdown_families(catalogue()).splitlines()


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"^[A-Z_]{5,}$", README, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for target in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (ROOT / target).exists(), target


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"^make (\S+)|`make (\S+)`", text, re.MULTILINE)
    assert len(named) > 4
    for target in {one or other for one, other in named}:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
