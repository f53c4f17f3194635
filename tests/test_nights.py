"""What people read of a night."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from hft2ane import nights, state
from hft2ane.attempts import EQUAL, Attempts, State
from hft2ane.cli import main
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome, Run
from hft2ane.terminal.night import show_plan, show_run

STARTED = datetime(2026, 11, 28, 3, tzinfo=UTC)
NEW = Outcome("me/new", "ane/new", "create", "nothing is published yet", "failed", error="12 dB | gate",
              kind="GateFailed", signature="GateFailed: # dB", next=STARTED + timedelta(hours=4), worker="mac-2",
              tries=2, log="http://prefect/runs/1")  # fmt: skip
OLD = Outcome("me/old", "ane/old", "convert", "new weights", "failed", error="no such op", log="/x/build.log")
GOOD = Outcome("me/good", "ane/good", "create", "new", "published", rewrite=130.25, artefact=70.0, size=2_500_000,
               tag="v1", seconds=12.3, worker="mac-1", url="http://hub/ane/good")  # fmt: skip
HELD = Outcome("me/held", "ane/held", "held", "it failed, and waits", "held")
RUN = Run(STARTED, (GOOD, OLD, NEW, HELD), ("me/new",), 125.0, ("the state could not be written",), skipped=7)


def test_the_headline_says_first_what_newly_fails() -> None:
    assert nights.headline(RUN) == "1 of 4 models newly fails: me/new · 1 failed as before, 1 published, 1 held"
    assert nights.headline(Run(STARTED, (), (), 1.0)) == "nothing was to be done"


def test_a_night_that_broke_off_says_so_first_with_what_it_had_done() -> None:
    why = "HubUnavailable: cannot look up me/a: 127.0.0.1 did not answer"
    broken = replace(RUN, broken=why)
    assert nights.headline(broken).startswith(f"broke off: {why} · 1 of 4 models newly fails: me/new")
    assert nights.headline(Run(STARTED, (), (), 1.0, broken=why)) == f"broke off: {why} · nothing was done"
    assert nights.notification(broken).splitlines()[:2] == [why, "me/new newly fails: 12 dB | gate"]
    assert "broke off: HubUnavailable" in nights.markdown(broken).splitlines()[2]
    assert "## Published: 1" in nights.markdown(broken)
    assert nights.headline(replace(RUN, only=("me/new",))).endswith("1 held, of me/new alone")


def test_the_report_begins_with_failures_and_the_new_one_first() -> None:
    page = nights.markdown(RUN)
    lines = page.splitlines()
    titles = [line for line in lines if line.startswith("#")]
    assert titles == [
        "# 2026-11-28 03:00 UTC",
        "## Failed: 2",
        "## Published: 1",
        "## Held: waits by itself: 1",
        "## Warnings",
    ]
    rows = [line for line in lines if line.startswith("| ") and "me/" in line]
    assert [next(id for id in ("new", "old", "good", "held") if f"me/{id}" in row) for row in rows] == [
        "new", "old", "good", "held",
    ]  # fmt: skip
    assert rows[0].startswith("| **new** |")
    assert "12 dB" in rows[0]
    assert rows[0].count(" | ") == 6, "a bar in an error is no end of a cell"
    assert "mac-2 (try 2)" in rows[0]
    assert "[log](http://prefect/runs/1)" in rows[0]
    assert "next try from 2026-11-28 07:00 UTC on" in rows[0]
    assert "`/x/build.log`" in rows[1]
    assert "[ane/good@v1](http://hub/ane/good)" in rows[2]
    assert "| 130.2 | 70.0 | 2.5 | 12 | mac-1 |" in rows[2]
    assert "7 models needed nothing." in page
    assert "2 min" in page


def test_what_newly_cannot_be_done_comes_before_what_went_well() -> None:
    gone, gated = (Outcome(f"me/{name}", f"ane/{name}", "blocked", name, "blocked") for name in ("gone", "gated"))
    page = nights.markdown(Run(STARTED, (GOOD, gated, gone), ("me/gone",), 1.0))
    assert re.findall("me/[a-z]+", page.partition("##")[2]) == ["me/gone", "me/gated", "me/good"]
    page = nights.markdown(Run(STARTED, (GOOD, gated, gone), (), 1.0))
    assert re.findall("me/[a-z]+", page.partition("##")[2]) == ["me/good", "me/gated", "me/gone"]


@pytest.mark.parametrize("hostile", ["<script>x</script>", "[a](javascript:x)", "a\nb", "`code`|"])
def test_what_others_wrote_is_text(hostile: str) -> None:
    bad = Outcome(hostile, "ane/x", "create", hostile, "failed", error=hostile, log=hostile)
    page = nights.markdown(Run(STARTED, (bad,), (), 1.0, (hostile,)))
    outside = re.sub(r"`[^`]*`|\\.", "", page)  # of code, and without what is escaped
    assert "<script>" not in outside
    assert "](javascript:" not in outside
    assert len([line for line in page.splitlines() if line.startswith("| ")]) == 2


def test_a_job_s_end_is_a_line() -> None:
    assert nights.line(GOOD) == "published as ane/good@v1, 70.0 dB"
    assert nights.line(OLD) == "failed: no such op"


def test_the_notification_has_failures_first_with_all_that_one_needs() -> None:
    lines = nights.notification(RUN).splitlines()
    assert lines[:4] == [
        "me/new newly fails: 12 dB | gate",
        "  next try from 2026-11-28 07:00 UTC on",
        "  signature: GateFailed: # dB",
        "  log: http://prefect/runs/1",
    ]
    assert lines[4] == "me/old fails as before: no such op"
    assert lines[-2:] == ["me/good: ane/good@v1 http://hub/ane/good", "warning: the state could not be written"]


def test_failures_are_explained_by_what_is_remembered() -> None:
    def remembered(equal: int) -> Attempts:
        return Attempts("subject", "bert", "GateFailed: # dB", equal, 1.0, "12 dB", STARTED)

    after = State(attempts={"ane/new": remembered(1), "ane/old": remembered(EQUAL), "ane/held": remembered(2)})
    good, old, new, held = nights.explained(RUN.outcomes, after)
    assert good is GOOD
    assert (new.signature, new.next) == ("GateFailed: # dB", STARTED + timedelta(hours=4))
    assert old.next is None
    assert nights.next_try(old).startswith("no more tries until")
    assert held.next == STARTED + timedelta(hours=4)


def test_the_plan_as_rows_counts_what_needs_nothing() -> None:
    job = Job("create", "nothing is published yet", "me/a", "ane/a", cause="request", work=0.0123)
    skip = Job("skip", "nothing has changed", "me/b", "ane/b")
    rows = nights.plan_rows([job, skip, skip])
    assert rows[0] == {"model": "me/a", "to": "create", "cause": "request", "TFLOP": "0.0123",
                       "why": "nothing is published yet", "repo": "ane/a"}  # fmt: skip
    assert rows[1]["why"] == "2 models need nothing"
    assert rows[0].keys() == rows[1].keys()


def test_a_long_night_is_not_a_missing_one(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What counts is when it ended."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    (tmp_path / "models.yaml").write_text("defaults: {publish: {organization: ane}}\nmodels: [me/good]\n")
    command = ["nights", "--manifests", str(tmp_path / "models.yaml"), "--within", "26"]
    began = datetime.now(UTC) - timedelta(hours=30)
    for hours, missing in ((3, 1), (10, 0)):
        assert not state.write(Hub(), State(), State(), ["ane"], replace(RUN, started=began, seconds=hours * 3600.0))
        assert main(command) == missing


def test_only_a_night_that_came_to_its_end_is_one() -> None:
    """The watch asks whether what is published is looked after: not whether something was started."""
    now = STARTED + timedelta(hours=20)
    broken = replace(RUN, broken="WorkerMismatch: mac-2 has another lock")
    some = replace(RUN, only=("me/new",))
    assert nights.missing([RUN], "ane", 26, now) is None
    assert nights.missing([broken, some, RUN], "ane", 26, now) is None, "a good one before it"
    assert (
        nights.missing([broken, RUN], "ane", 19, now) == "no night of ane in the last 19 hours: is its schedule alive?"
    )
    for runs in ([broken], [some, broken]):
        assert nights.missing(runs, "ane", 26, now) == (
            "no night of ane in the last 26 hours has come to its end; that of 2026-11-28 03:00 UTC broke off: "
            "WorkerMismatch: mac-2 has another lock"
        )
    for runs in ([], [some]):
        assert "is its schedule alive" in (nights.missing(runs, "ane", 26, now) or "")


def test_a_run_in_a_terminal_has_its_figures_whole_at_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`138.5` on two lines would be another number."""
    long = replace(GOOD, id=f"me/{'g' * 36}", task="sentence-embedding", status="published", tag="v1")
    skip = Outcome("me/rest", "ane/rest", "skip", "nothing has changed", "skip")
    for width in (80, 132):
        monkeypatch.setattr("hft2ane.terminal.console.Screen.__call__", lambda _, width=width: Console(width=width))
        show_run(Run(STARTED, (long, skip), (), 90.0), "a night")
        shown = capsys.readouterr().out
        for word in ("130.2", "70.0", "2.5", "published", "sentence-embedding", "→ ane/good@v1", "nothing has changed"):
            assert word in shown, (width, shown)
        assert max(map(len, shown.splitlines())) <= width
        show_run(Run(STARTED, (skip,), (), 1.0), "another")
        assert "MB" not in capsys.readouterr().out


def test_a_pipe_folds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    why = " ".join(["a long reason"] * 20)
    job = Job("create", why, f"me/{'a' * 90}", f"ane/{'b' * 90}", cause="request", work=1.5)
    show_plan([job, Job("skip", "nothing has changed", "me/b", "ane/b")])
    shown = capsys.readouterr().out
    assert why in shown
    assert f"→ ane/{'b' * 90}" in shown
    assert "1 to create, 1 skip; 1.5 TFLOP" in shown
