"""What the README says is there is there, and what is there it says."""

import re
from collections import Counter
from pathlib import Path

import pytest

from hft2ane.families import catalogue
from hft2ane.terminal.families import markdown_families

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


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_links_lead_somewhere() -> None:
    assert len(PAGES) > 8
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_named() -> None:
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.relative_to(ROOT).as_posix()})" in README, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_there_twice(page: Path) -> None:
    """As when two branches are joined line by line: headings, paragraphs, points of a list. Headings stand free."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"\n\n+|\n(?=- )", text)
    assert [part for part, n in Counter(parts).items() if n > 1 and len(part) > 20] == []
    headings = re.findall(r"^#+ .*$", text, re.MULTILINE)
    assert [heading for heading in set(headings) if headings.count(heading) > 1] == []
    assert re.findall(r"[^\n]\n#+ .*$", text, re.MULTILINE) == []
    assert not re.search(r"^(<<<<<<<|>>>>>>>|=======$)", text, re.MULTILINE)


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "".join(page.read_text() for page in PAGES if page.name not in ("decisions.md", "CHANGELOG.md"))
    named = re.findall(r"^make (\S+)|`make (\S+)`", text, re.MULTILINE)
    assert len(named) > 4
    for target in {one or other for one, other in named}:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
