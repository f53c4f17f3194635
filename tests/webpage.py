"""What is wrong with a page: its form, its links, and what keeps people from using it."""

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {"meta", "link", "img", "input", "br", "hr"}
# What an opening tag ends that has no end tag of its own: HTML lets these be left out.
ENDS = {"td": {"td", "th"}, "th": {"td", "th"}, "tr": {"td", "th", "tr"}, "option": {"option"}, "li": {"li"}}
ENDED = {"tbody": {"td", "th", "tr"}, "thead": {"td", "th", "tr"}, "table": {"tbody", "td", "th", "tr"}}


class Page(HTMLParser):
    """A page, read strictly. `faults`: what is wrong by itself."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        if self.open:
            self.faults.append(f"never closed: {self.open}")
        self.faults += self.accessible()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        while self.open and self.open[-1] in ENDS.get(tag, ()):
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)
        names = [name for name, _ in attrs]
        self.faults += [f"<{tag}> has {name} twice" for name, n in Counter(names).items() if n > 1]
        self.faults += [f"<{tag}> has {name}" for name in names if name.startswith("on") or name == "style"]
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in ENDED.get(tag, ()):
            self.open.pop()
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing, inside {self.open}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def accessible(self) -> list[str]:
        faults = [f"the id {id} is there twice" for id, n in Counter(self.ids).items() if n > 1]
        if self.headings.count(1) != 1 or self.headings[0] != 1:
            faults.append(f"not one h1, first of all: {self.headings}")
        for before, after in zip(self.headings, self.headings[1:], strict=False):
            if after > before + 1:
                faults.append(f"h{after} after h{before}")
        faults += [f"no alt: {img}" for img in self.all("img") if not img.get("alt")]
        labelled = {label["for"] for label in self.all("label")}
        for tag in ("input", "select"):
            faults += [f"no label: {each}" for each in self.all(tag) if each.get("id") not in labelled]
        regions = [each for _, each in self.tags if each.get("role") == "region"]
        faults += [f"a region without a name: {each}" for each in regions if not each.get("aria-label")]
        for _, each in self.tags:
            named = [each[name] for name in ("aria-labelledby", "for") if name in each]
            faults += [f"{id} is nowhere" for names in named for id in names.split() if id not in self.ids]
        faults += [f"th without scope: {each}" for each in self.all("th") if each.get("scope") not in ("col", "row")]
        if len(self.all("table")) != len(self.all("caption")):
            faults.append("a table without a caption")
        if self.all("html") != [{"lang": "en"}] or not self.all("title") or len(self.all("main")) != 1:
            faults.append("no language, title or main part")
        return faults

    @property
    def targets(self) -> list[str]:
        found = [(tag, key) for tag, key in (("a", "href"), ("link", "href"), ("script", "src"), ("img", "src"))]
        return [each[key] for tag, key in found for each in self.all(tag)]


def faults(site: Path) -> list[str]:
    """Of all pages of a site: wrong by themselves, or with links inside the site that lead nowhere."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = [f"{path.name}: {fault}" for path, page in pages.items() for fault in page.faults]
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "data"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc or not there.is_file() or site.resolve() not in there.resolve().parents:
                found.append(f"{path.name}: {target} leads nowhere")
            elif parts.fragment and parts.fragment not in pages[there].ids:
                found.append(f"{path.name}: {target} has no such place")
    return found
