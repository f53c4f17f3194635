"""The catalogue, from records on a Hub on this machine to pages: what is in it, what is not, and in what form."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hft2ane import card, disk, errors, records, state
from hft2ane.attempts import State
from hft2ane.card.readme import saying
from hft2ane.cli import main
from hft2ane.errors import BadInput, HubUnavailable
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.mac import Mac
from hft2ane.records.night import Outcome, Run
from hft2ane.records.recipe import Task, Variant, Wanted
from hft2ane.records.release import Conversion
from hft2ane.site import build
from hft2ane.site.collect import Catalogue, Collected, Release, arrange, plots, snippets
from hft2ane.site.pages import KINDS, STATIC, index, pages, templates
from tests.releases import files, nights, png, publish, release
from tests.synthetic import synthetic
from tests.test_card import job_folder
from tests.webpage import Page, faults

EVIL = "</td><script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7*7 }} &amp; \u202etxt\u0000\n# x"
MODELS = [
    release("up/m0", variants=("float16", "int8", "mixed-4"), lengths=(64, 128), psnr=80.0),
    release(
        "Up/m1",
        task="sentence-embedding",
        family="roberta",
        license="mit",
        size=9_000_000,
        mac=Mac("Apple M4", "Mac16,10", 2**34, "26.1", "25B78"),
    ),
    release("up/m2", task="text-generation", family="deberta-v2", license="cc-by-4.0", size=700_000_000, psnr=55.0),
    release("up/m3", retired="its author withdrew it"),
    release("up/m4", protocol="hft2ane-psnr-1"),
]
WANTED = [
    *(Wanted(f"up/m{n}", f"org/m{n}-ane", "m.yaml:1") for n in range(3)),
    Wanted("EleutherAI/pythia-70m", "org/pythia-70m-ane", "m.yaml:4"),
    Wanted("up/tight", "org/tight-ane", "m.yaml:5"),
    Wanted("up/closed", "org/closed-ane", "m.yaml:6"),
    Wanted("up/paused", "org/paused-ane", "m.yaml:7", paused="waits for its author"),
    Wanted("up/later", "org/later-ane", "m.yaml:8"),
    Wanted("up/secret", "org/secret-ane", "m.yaml:9"),
]


class World:
    """An organisation's releases and runs on a Hub of its own."""

    def __init__(self, folder: Path, local: LocalHub) -> None:
        self.folder, self.local, self.out = folder, local, folder / "site"
        self.found: Collected
        self.hub = Hub(local.url, local.token)
        self.hub.waits = (0.0,)
        for made in MODELS:
            publish(local, self.hub, made, folder)
        publish(local, self.hub, release("up/secret"), folder, private=True)
        self.put("org/unfinished-ane", files(release("up/unfinished")))
        self.put("org/other", {"README.md": b"# not ours"})
        secret = Outcome("up/secret", "org/secret-ane", "create", "new", "failed", "no", kind="GateFailed")
        for run in nights():
            told = replace(run, outcomes=(*run.outcomes, secret))
            assert state.write(self.hub, State(), State(), ["org"], told) == []

    def put(self, repo: str, content: dict[str, bytes]) -> str:
        for path, data in content.items():
            disk.write_bytes(self.folder / repo / path, data)
        return self.local.add(repo, self.folder / repo)

    def build(self, out: Path | None = None, images: bool = False) -> tuple[Collected, list[str]]:
        """And what was asked for it."""
        before = len(self.local.calls())
        found = build(self.hub, "org", WANTED, out or self.out, 14, images)
        return found, self.local.calls()[before:]

    def text(self, page: str) -> str:
        return (self.out / page).read_text()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LocalHub(tmp_path / "hub") as local:
        yield World(tmp_path, local)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with its site, for those who only look."""
    folder = tmp_path_factory.mktemp("built")
    with LocalHub(folder / "hub") as local:
        world = World(folder, local)
        world.found, _ = world.build()
        yield world


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(models: list[Release], runs: list[Run] | None = None, wanted: list[Wanted] | None = None) -> Collected:
    return arrange("org", "https://hub.example", models, runs or [], wanted or [])


def written(folder: Path, found: Collected) -> Path:
    for path, data in pages(found, images=False).items():
        disk.write_bytes(folder / path, data)
    for name in ("catalogue.json", *(each.record for each in found.catalogue.models)):
        disk.write_bytes(folder / name, b"{}")
    return folder


def test_every_page_is_in_form_and_every_link_leads_somewhere(world: World) -> None:
    found, _ = world.build(images=True)
    assert faults(world.out) == []
    names = {path.removesuffix(".html") for path in content(world.out) if path.endswith(".html")}
    assert names == {"index", "runs", "requested", *(f"models/m{n}-ane" for n in range(5))}
    assert [each.id for each in found.catalogue.models] == ["up/m0", "Up/m1", "up/m2", "up/m3", "up/m4"]
    assert found.warnings == (
        "org/unfinished-ane is left out: no publication of it was finished, it has no version tag",
    )


def test_the_checker_of_pages_can_find_something(tmp_path: Path) -> None:
    head = "<html lang=en><title>x</title><main><h1>x</h1>"
    for wrong, fault in (
        ("<h3>y</h3>", "h3 after h1"),
        ("<p><b>y</p>", "</p> closes nothing"),
        ("<img src=x.png>", "no alt"),
        ("<input id=q>", "no label"),
        ("<p id=q></p><p id=q></p>", "twice"),
        ("<a href=gone.html>y</a>", "leads nowhere"),
        ("<a href='#gone'>y</a>", "no such place"),
        ("<a href='javascript:alert()'>y</a>", "leads nowhere"),
        ("<p onclick=x>y</p>", "has onclick"),
    ):
        (tmp_path / "x.html").write_text(f"{head}{wrong}</main></html>")
        assert any(fault in each for each in faults(tmp_path)), fault
    (tmp_path / "x.html").write_text(f"{head}<table><caption>c</caption><tr><th scope=row>a<td>b</table></main></html>")
    assert faults(tmp_path) == []


def test_what_is_not_public_is_nowhere(built: World) -> None:
    everything = b"".join(content(built.out).values())
    for word in ("secret", "mini-3", "/srv/hft2ane", built.local.token):
        assert word.encode() not in everything
    assert "…/report.json: logits has 41.2 dB".encode() in everything
    assert "<b>broke off</b> before its end: WorkerMismatch</span>" in built.text("runs.html")


def test_the_page_of_a_model(built: World) -> None:
    page = Page(built.text("models/m0-ane.html"))
    commit = built.local.tags("org/m0-ane")["v1"]
    for said in (
        "Text with a masked word in, a score for each of 30522 vocabulary entries out.",
        "float16 m0.float16.mlpackage 45.1 64, 128 iOS 18 · macOS 15 80.0 dB 83.0 dB 100% not measured",
        "mixed-4 lossy m0.mixed-4.mlpackage",
        "hf download org/m0-ane --revision v1 --local-dir m0-ane",
        'model = MLModel("m0.float16.mlpackage")',
        "import CoreML",
        "the empty text",
        "rewrite torch 90.0 140.0 143.0",
        "hft2ane 0.1.0, coremltools 9.0, torch 2.13.0",
        MODELS[0].conversion.source.commit,
    ):
        assert said in page.text, said
    hub = built.local.url
    assert {
        f"{hub}/org/m0-ane",
        f"{hub}/org/m0-ane/tree/v1",
        f"{hub}/org/m0-ane/blob/{commit}/reports/report.json",
        f"{hub}/up/m0/tree/{MODELS[0].conversion.source.commit}",
        f"{hub}/org/m0-ane/resolve/{commit}/assets/psnr-float16-mil-declared.png",
    } <= set(page.targets)
    picture = f"{hub}/org/m0-ane/resolve/{commit}/assets/psnr-float16-mil-declared.png"
    assert built.text("models/m0-ane.html").count(f'<a href="{picture}"><img') == 1
    assert 'The code takes float16: in Python load(…, variant="mixed-4") takes another' in page.text
    assert "The code takes" not in Page(built.text("models/m4-ane.html")).text
    assert "1.23 ms (main, Apple M4 (25B78))" in Page(built.text("models/m1-ane.html")).text
    assert "7 are the same to the end" in Page(built.text("models/m2-ane.html")).text
    assert "Retired : its author withdrew it." in Page(built.text("models/m3-ane.html")).text


def test_plots_are_copied_when_asked(world: World) -> None:
    world.build(images=True)
    commit = world.local.tags("org/m0-ane")["v1"]
    path = f"models/m0-ane-{commit[:12]}/psnr-float16-mil-declared.png"
    assert (world.out / path).read_bytes() == png()
    assert path.removeprefix("models/") in Page(world.text("models/m0-ane.html")).targets
    _, asked = world.build(images=True)
    assert not [call for call in asked if "assets" in call]


def test_no_figure_without_its_protocol(built: World) -> None:
    """Every table with figures in dB names it in its caption, and the index says which of several a figure is of."""
    for n in range(5):
        text = built.text(f"models/m{n}-ane.html")
        tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
        of_psnr = [table for table in tables if re.search("PSNR|dB|Worst row", table)]
        assert len(of_psnr) >= 4
        for table in of_psnr:
            caption = re.search("<caption>.*?</caption>", table, re.DOTALL)
            assert caption
            assert MODELS[n].report.protocol in caption[0]
    index = Page(built.text("index.html")).text
    assert "by protocol hft2ane-psnr-2 :" in index
    assert "Figures with a number are of another protocol: 2 hft2ane-psnr-1 ." in index
    assert built.text("index.html").count("<sup>2</sup>") == 1


def test_a_row_tells_of_all_variants(built: World) -> None:
    (row,) = (line for line in built.text("index.html").splitlines() if "models/m0-ane.html" in line)
    assert "<tr data-v=45.1,80.0,18;22.8,53.7,18;18.8,36.6,18>" in row
    assert "<td>18.8–45.1<td>36.6–80.0<td>iOS 18 · macOS 15<td>apache-2.0" in row


def test_runs_have_failures_first(built: World) -> None:
    page = built.text("runs.html")
    assert Page(page).text.count("UTC") >= 3
    newest = page.split('<section class="night"')[1]
    assert re.sub(r"<[^>]+>|\s+", " ", newest).split("1 h 12 min")[0].split() == [
        "aria-labelledby=\"night-1\">", "2026-11-28", "03:00", "UTC", "3", "failed", "1", "published", "1", "blocked",
        "1", "held", "back", "1", "wanted", "by", "nobody", "1", "needed", "nothing",
    ]  # fmt: skip
    order = [
        "pythia-160m",
        "pythia-70m",
        "less exact than the gate",
        "up/tight",
        "Done: 1 model",
        "Not begun: 3 models",
    ]
    assert sorted(order, key=newest.index) == order
    assert "<small>2 models, for the same reason</small>" in newest
    assert "UnknownFamily: no family for model_type &#39;gpt_neox&#39;" in newest
    assert newest.count("no family for model_type &#39;gpt_neox&#39;") == newest.count(">as above<") == 2  # and a name
    assert "report.json: logits has 41.2 dB, the gate is 50 dB" in newest
    assert "2026-11-28 11:00 UTC" in newest
    assert '<a href="https://ci.example/runs/77">' in newest
    assert newest.count(">new<") == 2
    assert "Nothing was done." in page.split('<section class="night"')[2], "it broke off"
    assert '<a href="models/m0-ane.html">up/m0</a>' in newest


def test_requests_say_why(built: World) -> None:
    said = [(each.id, each.status, each.published) for each in built.found.catalogue.requested]
    assert said == [
        ("EleutherAI/pythia-70m", "failed", False),
        ("up/tight", "failed", False),
        ("up/closed", "blocked", False),
        ("up/paused", "paused", False),
        ("up/later", "waiting", False),
        ("up/m1", "held", True),
    ]
    text = Page(built.text("requested.html")).text
    for word in (
        "Nobody has rewritten this architecture for the Neural Engine yet. no family for model_type 'gpt_neox'",
        "waits for its author",
        "no run has come to it yet",
        "20 models of the wave are done tonight",
        "deberta-v2 , distilbert",
        "2 GiB of weights on macOS 26, 1 GiB of weights on macOS 27",
    ):
        assert word in text, word
    assert "held it back. 20 models of the wave" in Page(built.text("models/m1-ane.html")).text


def test_the_same_records_give_the_same_bytes(world: World, tmp_path: Path) -> None:
    world.build(images=True)
    first = content(world.out)
    world.build(images=True)  # from what the first one knew
    assert content(world.out) == first
    world.build(tmp_path / "other" / "place", images=True)
    assert content(tmp_path / "other" / "place") == first


def test_what_has_not_changed_is_not_asked_for_again(world: World) -> None:
    _, asked = world.build()
    assert len([call for call in asked if "conversion.json" in call]) == len(MODELS)
    _, asked = world.build()
    assert not [call for call in asked if "conversion.json" in call or "README" in call]
    again = replace(MODELS[1], conversion=replace(MODELS[1].conversion, license="apache-2.0"))
    publish(world.local, world.hub, again, world.folder)
    found, asked = world.build()
    assert [call.split()[1].split("/")[2] for call in asked if "conversion.json" in call] == ["m1-ane"]
    assert [(each.tag, each.license) for each in found.catalogue.models][1] == ("v2", "apache-2.0")


def test_an_unfinished_version_is_not_shown_yet(world: World) -> None:
    world.put("org/m0-ane", files(replace(MODELS[0], conversion=replace(MODELS[0].conversion, license="mit"))))
    found, _ = world.build()
    assert (found.catalogue.models[0].tag, found.catalogue.models[0].license) == ("v1", "apache-2.0")


@pytest.mark.parametrize("pattern", ["conversion.json", "api/models.author", "refs", "datasets/org", "assets"])
def test_a_hub_that_fails_leaves_the_site_as_it_was(world: World, pattern: str) -> None:
    world.build()
    before = content(world.out)
    publish(world.local, world.hub, release("up/m5"), world.folder)
    world.local.fail(pattern, times=99, status=503)
    with pytest.raises(HubUnavailable):
        world.build(images=True)
    assert content(world.out) == before
    assert [path.name for path in world.folder.glob(".site*")] == []


@pytest.mark.parametrize(
    ("path", "data", "why"),
    [
        ("conversion.json", b"{", "not a Conversion record"),
        ("conversion.json", records.dump(replace(MODELS[0].conversion, packages=())), "it has no package"),
        ("reports/report.json", records.dump(replace(MODELS[0].report, fidelity=())), "no figures for float16"),
    ],
)
def test_a_record_that_cannot_be_shown_is_left_out(world: World, path: str, data: bytes, why: str) -> None:
    commit = world.put("org/m0-ane", files(MODELS[0]) | {path: data})
    world.hub.tag("org/m0-ane", "v2", commit)
    found, _ = world.build()
    assert len(found.releases) == len(MODELS) - 1
    assert any(
        each.startswith("org/m0-ane is left out, its v2 cannot be shown") and why in each for each in found.warnings
    )


def test_another_folder_is_not_overwritten(world: World) -> None:
    world.out.mkdir()
    world.build()
    (world.folder / "precious").write_text("x")
    for place in (world.folder, world.folder / "precious"):
        with pytest.raises(BadInput, match="is no site made here: name another folder"):
            build(world.hub, "org", [], place, 14, images=False)
    assert (world.folder / "precious").read_text() == "x"


def hostile() -> Release:
    """Everything that is text, and nobody here wrote, is hostile."""
    base = release("up/evil", texts=(EVIL, EVIL + "2"))
    made, report = base.conversion, base.report
    source = replace(made.source, id=f"./{EVIL}", card=replace(made.source.card, language=(EVIL,)))
    functions = tuple(replace(f, name=EVIL) for f in made.packages[0].functions)
    package = replace(
        made.packages[0],
        file=EVIL,
        digest=EVIL,
        minimum_os=EVIL,
        weights=EVIL,
        functions=functions,
        default_function=EVIL,
    )
    evil = (
        replace(bar, measures=tuple(replace(m, output=EVIL, inputs=EVIL) for m in bar.measures))
        for bar in report.fidelity
    )
    bars = tuple(replace(bar, backend=EVIL) for bar in evil)
    made = replace(
        made, source=source, license=EVIL, family=EVIL, original=EVIL, hft2ane=EVIL, retired=EVIL, packages=(package,),
        toolchain={EVIL: EVIL}, protocol=EVIL,
    )  # fmt: skip
    evil_mac = replace(synthetic(Mac(EVIL, EVIL, 1, EVIL, EVIL)), failures=(EVIL,))
    report = replace(report, protocol=EVIL, fidelity=bars, not_measured=(EVIL,), macs=(evil_mac,), lint=())
    shown = tuple(replace(plot, about=EVIL) for plot in base.plots)
    return replace(base, conversion=made, report=report, plots=shown, snippets={"python": EVIL, "swift": EVIL})


def hostile_run() -> Run:
    (first, *_) = nights()
    outcome = replace(first.outcomes[0], id=EVIL, error=EVIL, why=EVIL, signature=EVIL, kind=EVIL, tag=EVIL, task=EVIL)
    return replace(
        first, outcomes=(outcome, *(replace(outcome, status=s) for s in ("published", "blocked"))), failed=(EVIL,)
    )  # type: ignore[arg-type]


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    wanted = [Wanted(EVIL, f"org/{EVIL}", EVIL, paused=EVIL)]
    site = written(tmp_path, made([hostile()], [hostile_run()], wanted))
    assert faults(site) == []
    for path in site.rglob("*.html"):
        page, text = Page(path.read_text()), path.read_text()
        assert [each for each in page.all("script") if set(each) != {"src", "defer"}] == []
        assert len(page.all("script")) == 1
        assert {img["src"].partition("/resolve/")[0] for img in page.all("img")} <= {"https://hub.example/org/evil-ane"}
        assert not any(character in text for character in "\u202e\u0000")
        assert "{{ 7*7 }}" in text


def names() -> list[str]:
    """A thousand ids like those that people ask for: 34 letters each on average, some twice as long."""
    rnd = random.Random(0)
    asked = re.findall(r"id: ([\w./-]+)", "".join(p.read_text() for p in sorted(Path("manifests").glob("*.yaml"))))
    return [f"{asked[n % len(asked)]}-{rnd.randrange(10**4):04}" for n in range(1000)]


def thousand() -> list[Release]:
    rnd = random.Random(1)
    tasks: tuple[Task, ...] = ("sentence-embedding", "token-classification", "fill-mask", "text-classification")
    some: list[tuple[Variant, ...]] = [("float16",), ("float16",), ("float16", "int8"), ("float16", "int8", "mixed-4")]
    return [
        release(
            id,
            task=rnd.choice(tasks),
            family=rnd.choice(["bert", "xlm-roberta", "distilbert", "modernbert"]),
            license=rnd.choice(["apache-2.0", "mit", "cc-by-nc-4.0"]),
            size=rnd.randrange(10**7, 10**9),
            psnr=rnd.uniform(55, 85),
            variants=rnd.choice(some),
        )
        for id in names()
    ]


def test_a_thousand_models_are_less_than_300_kb() -> None:
    """The page with its style and script, before any compression."""
    catalogue = made(thousand()).catalogue
    page = templates().get_template("index.html").render(index(catalogue), catalogue=catalogue, hub=catalogue.hub)
    assert page.count("<tr data-v=") == 1000
    size = len(page.encode()) + sum(path.stat().st_size for path in STATIC.iterdir())
    assert 200_000 < size < 300_000


def test_catalogue_json_is_stable(built: World) -> None:
    """Programs read it: what is there stays, under its name."""
    data = json.loads((built.out / "catalogue.json").read_bytes())
    assert data["schema"] == 1
    assert list(data) == ["organization", "hub", "last_run", "models", "requested", "schema"]
    assert list(data["models"][0]) == [
        "id", "repo", "page", "record", "commit", "tag", "task", "family", "license", "languages", "protocol",
        "variants", "retired",
    ]  # fmt: skip
    assert data["models"][0]["variants"][1] == {
        "variant": "int8", "files": ["m0.int8.mlpackage"], "size": 22845420, "lengths": [64, 128],
        "minimum_os": "iOS 18 / macOS 15", "weights": "int8", "lossy": False, "psnr_worst": 53.7, "psnr_median": 56.7,
        "top1": 1.0, "latency_ms": {},
    }  # fmt: skip
    assert list(data["requested"][0]) == ["id", "repo", "status", "why", "kind", "since", "next", "published"]
    assert records.read(built.out / "catalogue.json", Catalogue).last_run == nights()[-1].started
    assert records.read(built.out / data["models"][0]["record"], Release).conversion == MODELS[0].conversion


def test_nothing_published_is_a_site_too(tmp_path: Path) -> None:
    site = written(tmp_path, made([]))
    assert faults(site) == []
    assert "Nothing is published yet." in Page((site / "index.html").read_text()).text
    assert "Everything that is wanted is there." in Page((site / "requested.html").read_text()).text


def test_a_real_card_has_what_a_page_takes_over(tmp_path: Path) -> None:
    release = card.write(job_folder(tmp_path))
    text = (release / "README.md").read_text()
    code = snippets(text)
    assert set(code) == {"python", "swift"}
    for language, lines in code.items():
        assert f"```{language}\n{lines}\n```" in text
    compile(code["python"], "the card's code", "exec")
    shown = plots(text)
    assert {plot.path for plot in shown} == {p.relative_to(release).as_posix() for p in release.rglob("*.png")}
    assert all("\\" not in plot.about and plot.about for plot in shown)
    made = records.read(release / "conversion.json", Conversion)
    assert saying(made) in text


def test_kinds_are_errors_that_there_are() -> None:
    assert [name for name in KINDS if not hasattr(errors, name)] == []


def palette() -> Iterator[tuple[str, dict[str, str]]]:
    css = (STATIC / "site.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    yield "light", found
    yield "dark", found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    a, b = sorted((luminance(one), luminance(other)), reverse=True)
    return (a + 0.05) / (b + 0.05)


def test_colours_can_be_read() -> None:
    assert round(contrast("#000000", "#ffffff")) == 21
    for scheme, colour in palette():
        for ground in ("page", "card", "sunk"):
            for text in ("text", "quiet", "link", "bad"):
                assert contrast(colour[text], colour[ground]) >= 4.5, (scheme, text, ground)
        for ground in ("page", "card"):
            assert contrast(colour["edge"], colour[ground]) >= 3, (scheme, ground)
        assert contrast(colour["on-note"], colour["note"]) >= 4.5, scheme


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("HF_ENDPOINT", world.local.url)
    monkeypatch.setattr("hft2ane.hub.Hub.waits", (0.0,))

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["site", *map(str, arguments)])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return call


def manifest(folder: Path, *organizations: str) -> Path:
    entries = (f"- {{id: up/m{n}, publish: {{organization: {each}}}}}\n" for n, each in enumerate(organizations))
    (folder / "m.yaml").write_text("models:\n" + "".join(entries))
    return folder / "m.yaml"


def test_the_command(world: World, run: Command) -> None:
    code, out, err = run("--manifests", manifest(world.folder, "org"), "--out", world.out)
    assert (code, out) == (0, f"5 models, 0 runs, 0 requests: {world.out / 'index.html'}\n")  # no token: no runs
    assert "org/unfinished-ane is left out" in err
    assert "no run has left a report; where the state is private, HF_TOKEN has to read it" in err
    two = manifest(world.folder, "org", "other")
    code, _, err = run("--manifests", two, "--out", world.out)
    assert code == 2
    assert err == "hft2ane: the manifests publish to org, other: say whose site it is with --organization\n"
    assert run("--manifests", two, "--organization", "org", "--out", world.out)[0] == 0
    assert run("--manifests", two, "--nights", "0")[0] == 2
    world.local.fail("api/models", times=99, status=500)
    code, _, err = run("--manifests", manifest(world.folder, "org"), "--out", world.out)
    assert (code, err.count("\n")) == (75, 1)
    assert faults(world.out) == []
