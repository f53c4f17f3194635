"""An audit finds each way in which a published repo is not what it says; its figures are in tests/test_flows.py."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import constants

from hft2ane import keys, package, recheck, records, state
from hft2ane.attempts import State, Untrue
from hft2ane.errors import GateFailed, HubUnavailable, OverLimit, ToolchainMismatch, WorkerLost
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.progress import Progress, silent
from hft2ane.publish import publish
from hft2ane.recheck import Checked, check, choose, compared, remember
from hft2ane.records.fidelity import Fidelity, Measure
from hft2ane.records.package import Audit
from hft2ane.records.release import Conversion, Report
from hft2ane.records.source import RemoteFile
from tests.test_publish import FILES, INNER, PACKAGE, REPO, conversion, on_hub, release

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
OTHER = "org/other-ane"
DAY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def hub(local: LocalHub, tmp_path: Path) -> Hub:
    """One that has a release."""
    hub = Hub(local.url, local.token)
    hub.waits = (0.0,)
    files = {**FILES, "reports/ranges.json": records.dump(Audit(1, 1, (), (), ()))}
    job = release(tmp_path / "job", files, record(tmp_path / "package"))
    publish(job, hub)
    return hub


def record(place: Path) -> Conversion:
    """With the digest of the package as it is."""
    for name in (name for name in FILES if name.startswith(PACKAGE)):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(FILES[name])
    made = replace(conversion().packages[0], digest=package.digest(place / PACKAGE))
    files = (RemoteFile("config.json", 2, "a" * 40, False), RemoteFile("model.safetensors", 2, "b" * 64, True))
    return replace(conversion(), packages=(made,), source=replace(conversion().source, files=files))


def put(local: LocalHub, hub: Hub, place: Path, changes: dict[str, bytes | None], tag: str | None = "v2") -> None:
    """A commit that somebody made by hand; None deletes."""
    for name, content in {**on_hub(local), **changes}.items():
        if content is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    commit = local.add(REPO, place)
    if tag:
        hub.tag(REPO, tag, commit)


def found(hub: Hub, tmp_path: Path) -> Checked:
    (tmp_path / "audit").mkdir()
    return check(REPO, hub, tmp_path / "audit", None)


def test_a_good_release(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    assert found(hub, tmp_path) == Checked(REPO, local.tags(REPO)["v1"], ())


def test_a_signature_is_no_file_too_many(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    put(local, hub, tmp_path / "signed", {"SHA256SUMS.sig": b"{}"})
    assert found(hub, tmp_path).problems == ()


def test_nothing_published(hub: Hub, tmp_path: Path) -> None:
    assert check("org/none", hub, tmp_path, None) == Checked("org/none", None, (), ("nothing is published",))


@pytest.mark.parametrize(
    ("changes", "says", "mend"),
    [
        ({"README.md": b"# Mine"}, "README.md has not the digest that SHA256SUMS says", "card"),
        ({"assets/psnr.png": b"\x89PNG\0\0"}, "assets/psnr.png has not the digest", "card"),
        ({"LICENSE": None}, "LICENSE is not there", "convert"),
        ({"more.txt": b"x"}, "more.txt is not in SHA256SUMS", "convert"),
        ({f"{INNER}/weights/weight.bin": b"other"}, f"{INNER}/weights/weight.bin has not the digest", "convert"),
        ({"SHA256SUMS": None}, "SHA256SUMS is not there, or empty", "convert"),
        ({"SHA256SUMS": b"x"}, "SHA256SUMS is not a list of digests, sorted by path: line 1 ('x') is not", "convert"),
        ({"conversion.json": b"{}"}, "conversion.json is not a Conversion record", "convert"),
        ({"README.md": b"# Mine", "LICENSE": b"mine"}, "LICENSE has not the digest", "convert"),
    ],
)
def test_what_is_not_what_it_says(
    hub: Hub, local: LocalHub, tmp_path: Path, changes: dict[str, bytes | None], says: str, mend: str
) -> None:
    put(local, hub, tmp_path / "edited", changes)
    seen = found(hub, tmp_path)
    assert any(says in problem for problem in seen.problems), seen.problems
    assert (seen.mend, seen.commit) == (mend, local.tags(REPO)["v2"])


def test_a_package_whose_sums_were_changed_with_it(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    path, new = f"{INNER}/weights/weight.bin", bytes(128_000)
    old = hashlib.sha256(FILES[path]).hexdigest()
    sums = on_hub(local)["SHA256SUMS"].replace(old.encode(), hashlib.sha256(new).hexdigest().encode())
    put(local, hub, tmp_path / "edited", {path: new, "SHA256SUMS": sums})
    assert found(hub, tmp_path).problems == (f"{PACKAGE} has not the digest that conversion.json says",)


def test_a_commit_without_a_version(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    put(local, hub, tmp_path / "edited", {"NOTICE": b"x"}, tag=None)
    assert found(hub, tmp_path).problems == ("the head has no version tag", "NOTICE is not in SHA256SUMS")


def test_without_the_original_it_is_not_measured(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "PROTOCOL", "p1")
    (tmp_path / "audit").mkdir()
    seen = check(REPO, hub, tmp_path / "audit", lambda folder: pytest.fail("there is nothing to measure"))
    assert seen.problems == ()
    assert "not measured again" in seen.notes[0]


def test_figures_of_another_protocol_are_not_compared(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    seen = check(REPO, hub, tmp_path / "audit", lambda folder: pytest.fail("there is nothing to compare"))
    assert seen.notes == ("its figures are of p1: not measured again",)


@pytest.mark.parametrize("error", [OverLimit("too slow"), ToolchainMismatch("torch 1"), WorkerLost("signal 9")])
def test_a_machine_that_cannot_measure_says_nothing_of_the_release(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(keys, "PROTOCOL", "p1")
    monkeypatch.setattr(recheck.source, "fetch", lambda *_: None)
    (tmp_path / "audit").mkdir()
    seen = check(REPO, hub, tmp_path / "audit", fail)
    assert (seen.problems, seen.notes) == ((), (f"not measured again: {error}",))


@pytest.mark.parametrize("error", [GateFailed("constant"), HubUnavailable("down")])
def test_a_failure_to_measure(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(keys, "PROTOCOL", "p1")
    monkeypatch.setattr(recheck.source, "fetch", lambda *_: None)
    (tmp_path / "audit").mkdir()
    if isinstance(error, HubUnavailable):
        with pytest.raises(HubUnavailable):
            check(REPO, hub, tmp_path / "audit", fail)
    else:
        seen = check(REPO, hub, tmp_path / "audit", fail)
        assert (seen.problems, seen.mend) == (("it cannot be measured again: constant",), "verify")


def report(psnr: float, backend: str = keys.BACKEND) -> Report:
    measure = Measure("logits", 64, "one token", 1, psnr, psnr, psnr, 1.0, None, "")
    return Report("p", "v", (Fidelity("float16", backend, 50.0, psnr, psnr, psnr, None, (measure,)),), (), (), 1.0)


@pytest.mark.parametrize(("now", "problems"), [(70.9, 0), (69.1, 0), (71.5, 1), (68.5, 1), (float("nan"), 1)])
def test_figures_differ_by_no_more_than_a_decibel(now: float, problems: int) -> None:
    seen = compared(REPO, report(70.0), report(now))
    assert len(seen.problems) == problems
    assert seen.measured[0][:2] == ("float16", 70.0)


def test_a_figure_that_is_not_in_the_report() -> None:
    (problem,) = compared(REPO, report(70.0, "coreml-CPU_ONLY"), report(70.0)).problems
    assert problem == "float16: logits at 64 tokens on one token has 70.0 dB, the report says nothing"


def test_a_sample_is_another_each_day() -> None:
    repos = [f"org/m{n}" for n in range(50)]
    assert choose(repos, None, DAY) == sorted(repos)
    assert choose(repos, 99, DAY) == sorted(repos)
    days = {tuple(choose(repos, 3, DAY.replace(day=day))) for day in range(1, 11)}
    assert len(days) == 10
    assert choose(repos[::-1], 3, DAY) == choose(repos, 3, DAY)


def test_what_is_remembered() -> None:
    before = State(untrue={"org/a": Untrue("1", "card", "x"), "org/b": Untrue("1", "card", "x")})
    seen = [Checked("org/a", "2", ()), Checked("org/c", "3", ("y", "z"), mend="verify"), Checked("org/d", None, ())]
    assert remember(before, seen).untrue == {
        "org/b": Untrue("1", "card", "x"),
        "org/c": Untrue("3", "verify", "y"),
    }


def untrue(local: LocalHub, hub: Hub, place: Path) -> None:
    """A second repo, whose card somebody wrote."""
    for name, content in {**on_hub(local), "README.md": b"# Mine"}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    hub.tag(OTHER, "v1", local.add(OTHER, place))


def test_what_was_found_before_the_hub_went_away_is_remembered(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    untrue(local, hub, tmp_path / "other")
    local.fail(f"GET .*{REPO}", times=99, status=503)
    begun: list[str] = []

    @contextmanager
    def watch(repo: str) -> Iterator[Progress]:
        begun.append(repo)
        yield silent

    done = recheck.audit([OTHER, REPO, "org/third-ane"], hub, None, watch)
    assert begun == [OTHER, REPO]
    assert [each.repo for each in done.untrue] == [OTHER]
    assert isinstance(done.away, HubUnavailable)
    assert str(done.away).endswith(f"Not looked at: 2 of 3 repos, from {REPO} on")
    remembered, _ = state.read(hub, ["org"])
    assert remembered.untrue[OTHER].mend == "card"


def test_what_could_not_be_remembered_at_once_is_with_the_next(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    untrue(local, hub, tmp_path / "other")
    local.fail("POST .*datasets", times=1, status=403)
    done = recheck.audit([OTHER, REPO], hub, None, lambda repo: nullcontext(silent))
    assert [each.repo for each in done.untrue] == [OTHER]
    assert (done.away, done.warnings) == (None, ())
    assert set(state.read(hub, ["org"])[0].untrue) == {OTHER}


def test_a_true_repo_is_no_longer_remembered_as_untrue(hub: Hub, local: LocalHub) -> None:
    state.write(hub, State(), State(untrue={REPO: Untrue("1", "card", "x")}), ["org"])
    assert recheck.audit([REPO], hub, None, lambda repo: nullcontext(silent)).untrue == ()
    assert state.read(hub, ["org"])[0].untrue == {}
