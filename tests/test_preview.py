"""What a pull request's author sees of manifests, before anything is converted: asked of a Hub on this machine."""

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from markdown_it import MarkdownIt

from hft2ane import preview
from hft2ane.asked import Changes, compare
from hft2ane.cli import main
from hft2ane.errors import ManifestError
from hft2ane.families import FAMILIES, family
from hft2ane.forecast import CLASSES, contract, forecast, minutes, other_head, refusals, size, task_of
from hft2ane.localhub import LocalHub
from hft2ane.manifest.read import read_manifests
from hft2ane.records import read
from hft2ane.records.job import Job
from hft2ane.records.package import Exported
from hft2ane.records.recipe import Recipe, Wanted
from hft2ane.records.source import RemoteFile
from tests.conftest import Checkpoint
from tests.families import ROWS

ROOT = Path(__file__).parent.parent
BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
HEAD = "defaults:\n  publish: {organization: ane}\n  lengths: [16]\nmodels:\n"

Preview = Callable[..., tuple[int, str]]


def manifest(path: Path, *entries: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + "".join(f"- {entry}\n" for entry in entries))
    return path


@pytest.fixture
def original(hub: LocalHub, tmp_path: Path) -> Callable[..., str]:
    """Puts a model on the Hub, its weights so many bytes of nothing; its commit."""

    def put(id: str, config: dict[str, Any] = BERT, license: str = "mit", bytes_: int = 1000, card: str = "") -> str:
        folder = tmp_path / "originals" / id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(bytes(bytes_))
        (folder / "README.md").write_text(f"---\nlicense: {license}\n{card}---\n")
        return hub.add(id, folder)

    return put


@pytest.fixture
def plan(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Preview:
    """`hft2ane plan --markdown` in this process: the exit code, and the page."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("hft2ane.hub.Hub.waits", (0.0, 0.0))
    monkeypatch.delenv("GITHUB_SHA", raising=False)  # CI's own

    def call(manifests: Path, *more: object) -> tuple[int, str]:
        code = main(["plan", "--markdown", "--manifests", str(manifests), *map(str, more)])
        return code, capfd.readouterr().out

    return call


def part(page: str, head: str) -> str:
    """What stands below a heading."""
    return page.partition(f"### {head}\n")[2].partition("\n### ")[0]


def test_the_page_of_a_change(hub: LocalHub, original: Callable[..., str], plan: Preview, tmp_path: Path) -> None:
    for name in ("same", "longer", "rests", "fresh"):
        original(f"up/{name}", bytes_=400_000)
    hub.add("ane/gone-ane", tmp_path / "originals/up/same")
    (tmp_path / "originals/up/same/conversion.json").write_text("{}")
    hub.add("ane/left-ane", tmp_path / "originals/up/same")
    (tmp_path / "originals/up/same/conversion.json").unlink()
    base = manifest(tmp_path / "base/a.yaml", "up/same", "up/longer", "up/rests", "up/gone", "up/left")
    now = manifest(
        tmp_path / "now/a.yaml",
        "{id: up/longer, lengths: [16, 32]}",
        "{id: up/rests, status: paused, reason: waits for its author}",
        "up/same",
        "{id: up/fresh, license: mit, variants: [float16, mixed-4]}",
    )
    code, page = plan(now, "--base", base.parent)
    assert code == 0
    changed = part(page, "What this changes")
    assert re.search(r"`up/fresh`.*`ane/fresh-ane` \| new \| create \| nothing is published yet \| ✓ `mit` \|", changed)
    assert re.search(r"`up/longer`.*\| lengths 16 → 16, 32 \| create .* ✓ `mit`, not in the manifest", changed)
    assert re.search(r"`up/rests`.*\| paused \| nothing \| paused: waits for its author \| not asked", changed)
    assert "up/same" not in page
    assert "1 other entry is as it was" in part(page, "Unchanged")
    out = part(page, "Taken out")
    assert "`up/gone`: nothing is published at `ane/gone-ane`" in out
    assert "`ane/left-ane` becomes an **orphan**" in out
    assert "hft2ane retire ane/left-ane" in out
    assert page.index("What this changes") < page.index("Taken out") < page.index("Unchanged")
    assert "write `license:` into the entry" in part(page, "Notes")
    assert not hub.calls("up/same")


def test_the_page_of_all(original: Callable[..., str], plan: Preview, tmp_path: Path) -> None:
    original("up/a")
    original("up/b", license="cc-by-nc-4.0")
    path = manifest(tmp_path / "a.yaml", "up/a", "up/b", "nobody/nothing", "{id: up/c, license: mit}")
    original("up/c", license="apache-2.0")
    code, page = plan(path)
    assert code == 0
    assert "**1 to create, 3 blocked**" in page
    assert "Nothing to do" not in page
    assert "`up/a`" in part(page, "To be done")
    attention = part(page, "Needs attention")
    assert (
        f"`up/b` at `{path}:6` is **blocked**: the licence 'cc-by-nc-4.0' allows non-commercial use only" in attention
    )
    assert f"`nobody/nothing` at `{path}:7` is **blocked**" in attention
    assert "the manifest expects 'mit'" in attention


def test_what_the_night_would_refuse(original: Callable[..., str], plan: Preview, tmp_path: Path) -> None:
    original("up/gpt", BERT | {"model_type": "gpt2"})
    original("up/short", BERT | {"max_position_embeddings": 12})
    original("up/own", BERT | {"auto_map": {"AutoModel": "x.X"}})
    original("up/roberta", BERT | {"model_type": "roberta", "max_position_embeddings": 17})
    original("up/unclear", BERT | {"architectures": ["BertForPreTraining"]})
    original("up/fine")
    names = ["up/gpt", "up/short", "up/own", "up/roberta", "up/unclear", "{id: up/fine, task: text-generation}"]
    original("up/head")
    code, page = plan(manifest(tmp_path / "a.yaml", *names, "{id: up/head, task: question-answering}"))
    attention = part(page, "Needs attention")
    assert code == 0
    assert "**1 to create, 6 would fail**" in page
    assert page.count("| would fail | see *Needs attention* |") == 6
    assert "no family for model\\_type 'gpt2'" in attention
    assert "16 tokens are asked for, the model has 12 positions for them: correct `lengths:`" in attention
    assert "16 tokens are asked for, the model has 15 positions" in attention
    assert "names BertForPreTraining, which no task has: say `task:` in the manifest" in attention
    assert "names BertForMaskedLM, whose weights have no head for question-answering: correct `task:`" in attention
    assert "auto\\_map" in attention
    assert "up/fine" not in attention
    assert page.count("<details>") == 1


def test_what_an_author_can_mend_is_red(
    hub: LocalHub,
    original: Callable[..., str],
    plan: Preview,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what is changed. An original that is gated may be open to the night."""
    original("up/nd", license="cc-by-nd-4.0")
    original("up/other", license="mit")
    original("up/gpt", BERT | {"model_type": "gpt2"})
    original("up/gated")
    hub.add("up/gated", tmp_path / "originals/up/gated", gated=True)
    original("up/fine")
    base = manifest(tmp_path / "base/a.yaml", "up/nd").parent
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hopeless = "{id: up/nobody, status: paused, reason: not there yet}"
    for entries, red, words in (
        (["up/typo"], 1, f"correct the name ([search the Hub for it]({hub.url}/models?search=typo))"),
        (["{id: up/nd, lengths: [32]}"], 1, "allows no changed copies"),
        (["up/nd", "{id: up/other, license: apache-2.0}"], 1, "✗ `mit`, not `apache-2.0`"),
        (["up/nd", "up/gpt"], 1, "no family"),
        (["up/nd", "up/fine", hopeless], 0, "1 to create, 1 paused"),
        (["up/nd", "up/gated"], 0, "its files are gated"),
    ):
        path = manifest(tmp_path / "now/a.yaml", *entries)
        code, page = plan(path, "--base", base)
        assert code == red, entries
        assert words in page
        assert plan(path)[0] == 0


def test_what_needs_attention_stands_first_in_order_of_lines(
    original: Callable[..., str], plan: Preview, tmp_path: Path
) -> None:
    names = ["up/z", "up/gpt", *(f"up/m{n}" for n in range(9)), "up/a"]
    original("up/gpt", BERT | {"model_type": "gpt2"})
    _, page = plan(manifest(tmp_path / "a.yaml", *names))
    assert re.findall(r"^- `(\S+)` at", part(page, "Needs attention"), re.MULTILINE) == names
    assert page.index("### Needs attention") < page.index("### To be done" if "### To be done" in page else "### Notes")


def test_all_mistakes_at_once(plan: Preview, tmp_path: Path) -> None:
    path = manifest(tmp_path / "a.yaml", "{id: up/x, taks: fill-mask}", "up/y", "up/Y", "{id: a/b, license: MIT}")
    code, page = plan(path)
    assert code == 2
    assert "3 problems in the manifests" in page
    for line, word in ((5, "did you mean 'task'?"), (7, "keep one of them"), (8, "lower case")):
        assert re.search(rf"\| `{path}:{line}` \| .*{re.escape(word)}", page), page


def test_the_hub_down(plan: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the manifests say is shown, and that nobody has verified it."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    base = manifest(tmp_path / "base/a.yaml", "up/x")
    rest = manifest(tmp_path / "rest/a.yaml", "{id: up/z, status: paused, reason: x}")
    now = manifest(tmp_path / "now/a.yaml", "up/y", "{id: up/l, license: mit, variants: [float16, int8]}")
    for (code, page), rows in (
        (plan(now), ["| `up/l`<br>→ `ane/l-ane` | `mit`, unverified | 16 | float16, int8 |"]),
        (plan(now, "--base", base.parent), ["| `up/y`<br>→ `ane/y-ane` | new | not in the manifest | 16 | float16 |"]),
        (plan(rest, "--base", base.parent), ["### Taken out\n\n- `up/x`"]),
    ):
        assert code == 75
        assert "the Hub does not answer" in page
        assert "127.0.0.1:9" in page
        assert "**Nothing of it is verified**" in page
        assert all(each in page for each in rows)


def test_a_hub_that_is_away_is_not_asked_for_each_model(hub: LocalHub, plan: Preview, tmp_path: Path) -> None:
    hub.fail("", times=1000, status=503)
    assert plan(manifest(tmp_path / "a.yaml", *(f"up/m{n}" for n in range(50))))[0] == 75
    assert len(hub.calls("")) == 3


def test_a_hub_that_asks_to_wait_for_long(hub: LocalHub, plan: Preview, tmp_path: Path) -> None:
    """A page that says so is better than none, when the check's time is up."""
    hub.fail("/api/models/up/x/", times=1, status=429, headers={"Retry-After": "290"})
    code, page = plan(manifest(tmp_path / "a.yaml", "up/x"))
    assert code == 75
    assert "it asks to wait 290 s" in page


# ---- the base


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_a_commit_as_base(
    original: Callable[..., str], plan: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read at the same paths, from wherever in the repository; a folder inside is not part of a folder."""
    for name in ("old", "new"):
        original(f"up/{name}")
    folder = tmp_path / "repo"
    manifest(folder / "manifests/ä b.yaml", "up/old")
    manifest(folder / "manifests/demo/d.yaml", "up/new")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    manifest(folder / "manifests/ä b.yaml", "up/old", "up/new")
    for place, path in ((folder, "manifests"), (folder / "manifests", "."), (folder / "manifests/demo", "..")):
        monkeypatch.chdir(place)
        code, page = plan(Path(path), "--base", "HEAD")
        assert code == 0
        assert "`up/new`" in part(page, "What this changes")
        assert "1 other entry" in page
    code, page = plan(Path("d.yaml"), "--base", "HEAD")
    assert page == "## Plan preview\n\n**Nothing changes** in the manifests: the entry is as at `HEAD`.\n\n"
    for none in ("no-such-ref", "--output=x", ""):
        assert plan(Path(".."), f"--base={none}")[0] == 2
    assert not list(folder.rglob("x"))


def test_files_that_come_and_go(
    original: Callable[..., str], plan: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two entries for a model the new one is told to go; a file in a folder, or of another kind, is not read."""
    for each in "abc":
        original(f"up/{each}")
    folder = tmp_path / "repo"
    manifest(folder / "manifests/m.yaml", "up/a", "up/b")
    manifest(folder / "manifests/z.yaml", "up/c")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    monkeypatch.chdir(folder)
    (folder / "manifests/z.yaml").rename(folder / "manifests/y.yaml")
    code, page = plan(Path("manifests"), "--base", "HEAD")
    assert (code, "**Nothing changes** in the manifests: the 3 entries are as at `HEAD`." in page) == (0, True)
    (folder / "manifests/y.yaml").rename(folder / "manifests/z.yaml")
    manifest(folder / "manifests/b.yaml", "up/d", "up/b")
    code, page = plan(Path("manifests"), "--base", "HEAD")
    assert (code, "| `manifests/b.yaml:6` | up/b is already asked for at manifests/m.yaml:6" in page) == (2, True)
    git(folder, "branch", "-q", "mine")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "main goes on")
    git(folder, "tag", "gone-on")
    git(folder, "checkout", "-q", "-f", "mine")
    assert "**Nothing changes**" in plan(Path("manifests"), "--base", "gone-on")[1]
    (folder / "manifests/m.yaml").unlink()
    manifest(folder / "manifests/more/b.yaml", "up/d")
    (folder / "manifests/list.txt").write_text("up/d\n")
    git(folder, "add", ".")
    code, page = plan(Path("manifests"), "--base", "HEAD")
    assert code == 0
    assert re.findall(r"- `(\S+)` is changed, and \*\*not read\*\*", page) == [
        "manifests/list.txt",
        "manifests/more/b.yaml",
    ]
    assert re.findall(r"^- `(\S+)`: nothing", part(page, "Taken out"), re.MULTILINE) == ["up/a", "up/b"]


def test_a_base_with_mistakes(original: Callable[..., str], plan: Preview, tmp_path: Path) -> None:
    original("up/a")
    base = manifest(tmp_path / "base/a.yaml", "{id: up/a, taks: x}")
    code, page = plan(manifest(tmp_path / "now/a.yaml", "up/a"), "--base", base.parent)
    assert code == 0
    assert "| new |" in page
    assert "have problems, so every entry counts as new" in page


def test_options_that_do_not_go_together(plan: Preview, tmp_path: Path) -> None:
    path = manifest(tmp_path / "a.yaml", "up/a")
    assert plan(path, "--jobs", tmp_path / "jobs")[0] == 2
    assert main(["plan", "--manifests", str(path), "--base", "HEAD"]) == 2


def test_what_is_otherwise_in_an_entry() -> None:
    old = Wanted("a/b", "o/b-ane", "x.yaml:1")
    cases = {
        "lengths 128 → 64": Wanted("a/b", "o/b-ane", "y.yaml:9", recipe=Recipe(lengths=(64,))),
        "repo o/b-ane → o/c": Wanted("a/b", "o/c", "y.yaml:9"),
        "license none → mit": Wanted("a/b", "o/b-ane", "y.yaml:9", license="mit"),
        "id a/b → A/b": Wanted("A/b", "o/b-ane", "y.yaml:9"),
    }
    for what, new in cases.items():
        found = compare([old], [new])
        assert found.changed[new.id].what == what
        assert bool(found.removed) == (new.repo == "o/c")
    assert compare([old], [Wanted("a/b", "o/b-ane", "y.yaml:9")]) == Changes({}, (), 1)
    paused = Wanted("a/b", "o/b-ane", "x.yaml:1", paused="why")
    assert compare([paused], [old]).changed["a/b"].kind == "resumed"
    assert compare([old], [paused]).changed["a/b"].kind == "paused"


# ---- text from outside

EVIL = (
    "</summary></details><img src=x onerror=1> | `x` ![i](http://e.example) [l](javascript:1) @octocat www.e.example #1"
)


def test_what_comes_from_outside_stays_text(
    hub: LocalHub, original: Callable[..., str], plan: Preview, tmp_path: Path
) -> None:
    card = f"pipeline_tag: {json.dumps(EVIL)}\nlanguage: {json.dumps([EVIL, 'de'])}\n"
    original("up/a", BERT | {"architectures": [f"{EVIL}Model", "\u202e::error::x"]}, card=card)
    original("up/b", BERT | {"model_type": EVIL})
    original("up/c", license=json.dumps(EVIL))
    path = manifest(
        tmp_path / "a.yaml", "up/a", "up/b", "up/c", f"{{id: up/d, status: paused, reason: {json.dumps(EVIL)}}}"
    )
    _, page = plan(path, "--base", manifest(tmp_path / "base/a.yaml", "up/z").parent)
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert "octocat" in rendered
    tags = set(re.findall(r"<(/?\w+)", rendered))
    assert not tags & {"img", "script"}
    assert set(re.findall(r"<a[^>]*>", rendered)) == {f'<a href="{hub.url}/up/{name}">' for name in "abcd"}
    assert rendered.count("<details>") == rendered.count("</details>") == page.count("\n<details>") == 1
    assert len(set(re.findall(r"<tr>(?:(?!</tr>).)*</tr>", rendered, re.DOTALL))) > 4
    text = html.unescape(re.sub(r"<code>.*?</code>|<a .*?>", "", rendered))
    assert not re.search(r"@octocat|http://|www\.e", text)
    assert "\u202e" not in page


def test_a_page_has_an_end(original: Callable[..., str], plan: Preview, tmp_path: Path) -> None:
    found = ManifestError([(f"manifests/{n}.yaml:1", "ä" * 900) for n in range(3000)])
    page = preview.problems(found)
    assert len(page.encode()) <= preview.LIMIT
    shown = page.count("| `manifests/")
    assert f"{3000 - shown} more lines" in page
    assert page.count("ä" * 700) == 0


def test_a_page_is_cut_between_its_lines() -> None:
    parts = [preview.Block("# a", ["one", "two"]), preview.Block("# none", []), preview.Block("# b", ["three", "four"])]
    whole = "# a\n\none\ntwo\n\n# b\n\nthree\nfour\n"
    assert preview.fit(parts, 1000) == whole
    for limit in range(120, 170):
        page = preview.fit(parts, limit)
        assert len(page.encode()) <= limit
        if page != whole:
            kept, left = page.rsplit("\n\n**Cut here", 1)
            assert whole.startswith(kept)
            assert f"{4 - sum(word in kept for word in ('one', 'two', 'three', 'four'))} more lines" in left


def test_beside_the_lines_on_github(
    original: Callable[..., str],
    hub: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    original("up/nc", license="cc-by-nc-4.0")
    path = manifest(tmp_path / "a.yaml", "up/nc")
    assert main(["plan", "--markdown", "--manifests", str(path)]) == 0
    assert f"::warning file={path},line=5::up/nc: the licence" in capfd.readouterr().err
    base = manifest(tmp_path / "base/a.yaml", "up/x").parent
    assert main(["plan", "--markdown", "--manifests", str(path), "--base", str(base)]) == 1
    assert f"::error file={path},line=5::up/nc: the licence" in capfd.readouterr().err
    manifest(path, "{id: up/nc, licence: x}")
    assert main(["plan", "--markdown", "--manifests", str(path)]) == 2
    assert f"::error file={path},line=5::unknown key" in capfd.readouterr().err
    assert preview.annotate("error", "a:b,%.yaml:3", "x\n::y%") == "::error file=a%3Ab%2C%25.yaml,line=3::x%0A::y%25"


def test_places_are_links_on_github(plan: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("SERVER_URL", "https://github.example"), ("REPOSITORY", "o/r"), ("SHA", "f00")):
        monkeypatch.setenv(f"GITHUB_{name}", value)
    path = manifest(Path("m/a (b).yaml"), "up/none")
    link = "[`m/a (b).yaml:5`](https://github.example/o/r/blob/f00/m/a%20%28b%29.yaml#L5)"
    assert f"- `up/none` at {link} is **blocked**" in plan(path)[1]
    manifest(path, "none")
    assert f"| {link} | id: 'none' will not do" in plan(path)[1]
    assert "blob" not in plan(path.absolute())[1]


@pytest.mark.parametrize("away", [True, False])
def test_what_is_logged_after_the_annotations_is_no_command(
    away: bool, plan: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """GitHub takes `::x::` at the start of a line, and `##[x]` anywhere, for a command."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    path = manifest(tmp_path / "a.yaml", "up/x" if away else "{id: '##[add-matcher]x'}")
    assert main(["plan", "--markdown", "--manifests", str(path)]) == (75 if away else 2)
    lines = capfd.readouterr().err.splitlines()
    stop = next(number for number, line in enumerate(lines) if re.fullmatch(r"::stop-commands::[0-9a-f]{32}", line))
    assert all(line.startswith(f"::error file={path},line=") for line in lines[:stop])
    assert stop == (0 if away else 1)
    assert lines[stop + 1].startswith("hft2ane: ")


# ---- the forecast


def test_tasks_by_the_names_of_classes() -> None:
    """What a checkpoint of each task names leads to that task."""
    for name in FAMILIES:
        for task, module in family(name).tasks.items():
            job = Job("create", "", "a/b", "o/b")
            assert task_of(job, {"architectures": [module.ORIGINAL]})[0] == task, (name, task)
    assert set(CLASSES.values()) >= {task for name in FAMILIES for task in family(name).tasks}
    assert task_of(Job("create", "", "a/b", "o/b"), {"architectures": ["BertForPreTraining"]})[0] is None


@pytest.mark.parametrize("name", [name for name in ROWS if not family(name).parts])
def test_lengths_are_the_familys(name: str) -> None:
    config = transformers.AutoConfig.for_model(name, **ROWS[name].tiny)
    most = family(name).tasks["feature-extraction"].limit(config)
    for length, refused in ((most, 0), (most + 1, 1)):
        job = Job("create", "", "a/b", "o/b", recipe=Recipe(lengths=(length,)))
        assert len(refusals(job, config.to_dict(), {})) == refused


@pytest.mark.parametrize("name", [name for name in ROWS if not family(name).parts])
def test_heads_are_the_familys(name: str) -> None:
    """What is refused for its head lacks some of it in such a checkpoint; and something is refused."""
    found = 0
    for named, module in family(name).tasks.items():
        settings = {**ROWS[name].tiny, **ROWS[name].needs.get(named, {})}
        config = transformers.AutoConfig.for_model(name, **settings)
        with torch.device("meta"):
            theirs = getattr(transformers, module.ORIGINAL)(config)
        stored = {each.removeprefix(f"{theirs.base_model_prefix}.") for each in theirs.state_dict()}
        stored |= {each.rpartition(".")[0] for each in stored}
        for wanted in family(name).tasks:
            if other_head(wanted, {"architectures": [module.ORIGINAL]}):
                head = {*family(name).rows(wanted, config)} - {*family(name).rows("feature-extraction", config)}
                assert head - stored, (named, wanted)
                found += 1
    assert found > 4


@pytest.mark.parametrize("name", [name for name in ROWS if not family(name).parts])
def test_inputs_and_outputs_are_the_familys(name: str) -> None:
    """Of a default configuration, as a published config.json has it."""
    for task, module in family(name).tasks.items():
        settings = {**ROWS[name].tiny, **ROWS[name].needs.get(task, {})}
        config = transformers.AutoConfig.for_model(name, **settings)
        inputs, outputs, _ = contract(task, config.to_dict(), ())
        if not outputs:
            continue
        with torch.device("meta"):
            ours = module(config, absent=("pooler",) if task == "feature-extraction" else ())
        assert tuple(port.name for port in inputs) == ours.inputs, task
        assert tuple(port.name for port in outputs) == tuple(ours.OUTPUTS), task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "more"),
    [("BertForMaskedLM", {}), ("BertForTokenClassification", {"num_labels": 3}), ("BertForQuestionAnswering", {})],
)
def test_the_forecast_comes_true(
    architecture: str, more: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(architecture, **more)
    assert main(["convert", str(folder), "--out", str(tmp_path / "x"), "--lengths", "16", "--variants", "float16"]) == 0
    (package,) = read(tmp_path / "x/export.json", Exported).packages
    files = tuple(RemoteFile(path.name, path.stat().st_size, "", False) for path in folder.iterdir())
    job = Job("create", "", "a/b", "o/b", files=files, recipe=Recipe(lengths=(16,)))
    found = forecast(job, (folder / "config.json").read_bytes())
    (function,) = package.functions
    for ours, theirs in ((found.inputs, function.inputs), (found.outputs, function.outputs)):
        assert {p.name: p.shape.replace("L", "16") for p in ours} == {
            t.name: "×".join(map(str, t.shape)) for t in theirs
        }


def test_sizes_are_those_measured() -> None:
    """all-MiniLM-L6-v2: 90.9 MB in fp32; what its packages have is in docs/decisions.md."""
    files = (RemoteFile("model.safetensors", 90_868_376, "", True), RemoteFile("onnx.bin", 10**9, "", True))
    config = {"hidden_size": 384, "vocab_size": 30522}
    for variant, measured in (("float16", 45.0), ("int8", 22.8), ("palettized-6", 20.1), ("palettized-4", 17.5)):
        assert size(variant, files, config) / 1e6 == pytest.approx(measured, rel=0.03)  # type: ignore[arg-type]
    halved = size("float16", files, config | {"torch_dtype": "float16"})
    assert halved == 2 * size("float16", files, config)


def test_minutes_are_those_of_the_demo() -> None:
    assert minutes(Job("create", "", "a/b", "o/b", work=0.523)) * 60 == pytest.approx(12.6, rel=0.1)
    shown = [preview.about(Job("create", "", "a/b", "o/b", work=work)) for work in (0, 1e-6, 0.523, 100)]
    assert shown == ["", "0.1", "0.2", "41.7"]


def test_weights_beyond_the_neural_engine() -> None:
    files = (RemoteFile("model.safetensors", 2_300_000_000, "", True),)
    job = Job("create", "", "a/b", "o/b", files=files, recipe=Recipe(variants=("float16", "int8"), lengths=(64,)))
    (refusal,) = forecast(job, json.dumps(BERT).encode()).refusals
    assert "float16 has about 1150.0 MB" in refusal


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"architectures": 7, "vocab_size": "x"}'])
def test_a_config_that_is_none(content: bytes) -> None:
    found = forecast(Job("create", "", "a/b", "o/b"), content)
    assert found.task is None
    assert not found.outputs


# ---- the repository's own


def test_the_manifests_here(hub: LocalHub, original: Callable[..., str], plan: Preview) -> None:
    """All of manifests/ on a Hub that has each of them, in the licence that is expected."""
    for each in read_manifests([ROOT / "manifests"]):
        original(each.id, BERT | {"max_position_embeddings": 8192}, license=each.license or "mit")
    code, page = plan(ROOT / "manifests")
    assert code == 0
    count = len(read_manifests([ROOT / "manifests"]))
    assert f"**{count} to create**" in page
    assert page.count("<details>") == count
