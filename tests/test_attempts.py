"""How long a failed model is left alone, and what two failures have in common."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hft2ane import records
from hft2ane.attempts import Attempts, State, failed, news, rebase, signature, waits
from hft2ane.errors import BadInput

NOW = datetime(2026, 1, 1, 3, tzinfo=UTC)


def after(*kinds: str, error: str = "12.5 dB") -> Attempts:
    found = None
    for kind in kinds:
        found = failed(found, "subject", "bert", kind, error, NOW)
    assert found is not None
    return found


@pytest.mark.parametrize(("failures", "hours"), [(1, 4), (2, 8), (3, 16), (4, 32), (6, 128), (9, 128)])
def test_each_failure_doubles_the_wait(failures: int, hours: float) -> None:
    assert after(*["GateFailed"] * failures).due - NOW == timedelta(hours=hours)


@pytest.mark.parametrize("kind", ["HubUnavailable", "NoSpace", "AccessDenied", "ConnectionError", "MemoryError"])
def test_failures_of_the_surroundings_count_a_fifth(kind: str) -> None:
    assert after(*[kind] * 5).count == 1
    assert after(kind).due - NOW == timedelta(hours=2 * 2**0.2)
    assert after(*[kind] * 50).equal == 0  # never held for good


@pytest.mark.parametrize("kind", ["GateFailed", "UnknownFamily", "KeyError", "RuntimeError", "", "NoSuchError"])
def test_all_others_are_the_models_own(kind: str) -> None:
    assert after(kind).count == 1


def test_the_surroundings_do_not_break_a_row_of_own_failures() -> None:
    found = after("GateFailed", "GateFailed", "HubUnavailable", "GateFailed")
    assert (found.equal, found.count) == (3, 3.2)
    assert after("GateFailed", "GateFailed", "ExportError").equal == 1


def test_it_waits_until_it_is_time() -> None:
    found = after("GateFailed")
    why = waits(found, NOW + timedelta(hours=3, minutes=59))
    assert why == "it failed with '12.5 dB', and is tried again from 2026-01-01 07:00 UTC on"
    assert waits(found, NOW + timedelta(hours=4)) is None


def test_after_five_equal_failures_it_waits_for_a_change() -> None:
    found = after(*["GateFailed"] * 5)
    assert "until its entry, our code for it or the original changes" in (waits(found, NOW + timedelta(days=999)) or "")
    assert failed(found, "another subject", "bert", "GateFailed", "x", NOW).equal == 1


def test_a_wrong_clock_holds_nobody_up() -> None:
    assert waits(after("GateFailed"), NOW - timedelta(days=400)) is None


SAME = [
    ("/tmp/x7/job.json: logits has 12.5 dB, the gate is 50 dB", "/var/y/job.json: logits has 9 dB, the gate is 50 dB"),
    ("no such commit 1d297334c5ab", "no such commit a53bb5bfc127"),
    ("tensor at 0x7f3a12: -1e-05", "tensor at 0x7f0012: +3.5"),
    ("stopped after 3600 s", "stopped  after\n3601.5 s"),
    ("cannot read owner/name at main", "cannot read owner/other at main"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_signatures_have_no_paths_ids_and_numbers(one: str, other: str) -> None:
    assert signature("GateFailed", one) == signature("GateFailed", other)
    assert signature("GateFailed", one) != signature("ExportError", one)


def test_signatures_keep_the_words() -> None:
    assert signature("UnknownFamily", "no family for model_type 'gpt2'") != signature(
        "UnknownFamily", "no family for model_type 'bloom'"
    )
    assert signature("X", "there are facade and defaced") == "X: there are facade and defaced"


def test_news_is_what_was_not_so_before() -> None:
    first = State({"o/a": after("GateFailed")}, {"o/b": "blocked: no licence"})
    assert news(State(), first) == {"o/a", "o/b"}
    assert news(first, first) == set()
    again = State({"o/a": after("GateFailed", "GateFailed")}, {"o/b": "blocked: no licence"})
    assert news(first, again) == set()
    other = State({"o/a": after("ExportError")}, {"o/b": "blocked: it is gated"})
    assert news(first, other) == {"o/a", "o/b"}
    assert news(first, State()) == set()


def test_a_failure_of_the_surroundings_is_news_once() -> None:
    first, second = (State({"o/a": after(*["NoSpace"] * n)}) for n in (1, 2))
    assert news(State(), first) == {"o/a"}
    assert news(first, second) == set()


NAMES = st.sampled_from(["o/a", "o/b", "p/c"])
STATES = st.builds(
    State,
    st.dictionaries(NAMES, st.sampled_from([after("GateFailed"), after("NoSpace")])),
    st.dictionaries(NAMES, st.sampled_from(["x", "y"])),
    st.dictionaries(NAMES, st.sampled_from([NOW, NOW + timedelta(days=1)])),
)


@given(STATES, STATES)
def test_two_runs_at_once_both_remember(before: State, mine: State) -> None:
    assert rebase(before, mine, before) == mine
    theirs = replace(before, blocked={**before.blocked, "z/new": "theirs"})
    assert rebase(before, mine, theirs).blocked == {**mine.blocked, "z/new": "theirs"}


@given(STATES)
def test_it_survives_its_file(state: State) -> None:
    assert records.parse(records.dump(state), State, "state.json") == state


def test_times_without_a_zone_and_counts_that_are_none_are_refused() -> None:
    text = records.dump(State({"o/a": after("GateFailed")})).decode()
    wrong: list[Any] = [("03:00:00Z", "03:00:00"), ('"count": 1.0', '"count": NaN'), ('"count": 1.0', '"count": -1')]
    for old, new in wrong:
        assert old in text
        with pytest.raises(BadInput):
            records.parse(text.replace(old, new), State, "state.json")
