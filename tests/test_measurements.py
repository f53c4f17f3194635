"""Contributed measurements: what is refused of them, and how they get into a report, a plan and a card.

All of them here are synthetic: no Mac measured anything of it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hft2ane import keys, measurements, records
from hft2ane.cli import main
from hft2ane.errors import BadInput
from hft2ane.plan import World, plan
from hft2ane.records.job import Job
from hft2ane.records.mac import Measurement, Unfinished
from hft2ane.records.release import Conversion, Report
from tests import test_plan
from tests.synthetic import MAC, PACKAGES, synthetic
from tests.test_plan import ONE, UPSTREAM, published

ROOT = Path(__file__).parent.parent


def put(folder: Path, m: Measurement) -> Path:
    path = folder / measurements.place(m)
    records.write(path, m)
    return path


# ---- what is read


def test_the_contributed_measurements_of_this_repo_are_sound() -> None:
    """`make check` asks the same, with `hft2ane measurements`."""
    measurements.read_all(ROOT / measurements.FOLDER)


def test_one_is_written_at_its_place_and_read_back(tmp_path: Path) -> None:
    one = synthetic()
    path = put(tmp_path, one)
    assert path == tmp_path / "org--name-ane" / "apple-m9-pro-24F74.json"
    assert measurements.read_all(tmp_path) == [one]
    assert measurements.by_repo(tmp_path) == ({"org/name-ane": [one]}, [])


def bar(m: Measurement, **changes: Any) -> dict[str, Any]:
    return {"fidelity": (replace(m.fidelity[0], **changes),)}


def timed(m: Measurement, **changes: Any) -> dict[str, Any]:
    return {"latency": (replace(m.latency[0], **changes),)}


def resident(m: Measurement, **changes: Any) -> dict[str, Any]:
    known = m.residency[0].placed[0].measured
    assert known is not None
    placed = replace(m.residency[0].placed[0], measured=replace(known, **changes))
    return {"residency": (replace(m.residency[0], placed=(placed,)),)}


@pytest.mark.parametrize("build", ["24F74", "25A5279m", "22F770820d"])
def test_builds_are_of_releases_betas_and_security_responses(build: str) -> None:
    assert list(measurements.faults(synthetic(replace(MAC, build=build)))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: {"repo": "org/na me"}, "repo is 'org/na me'"),
        (lambda m: {"repo": "../.."}, "repo|belongs"),
        (lambda m: {"mac": replace(m.mac, chip="<b>M9</b>")}, "mac.chip is '<b>M9</b>'"),
        (lambda m: {"mac": replace(m.mac, build="24F74/../x")}, "mac.build is"),
        (lambda m: {"mac": replace(m.mac, memory=1)}, "mac.memory is 1"),
        (lambda m: {"mac": replace(m.mac, model="VirtualMac2,1")}, "a virtual Mac has no Neural Engine, and no GPU"),
        (
            lambda m: {"mac": replace(m.mac, model="VirtualMac2,1"), "units": ("CPU_AND_GPU",)},
            "a virtual Mac has no Neural Engine, and no GPU",
        ),
        (lambda m: {"protocol": "hft2ane-psnr-0"}, "protocol is 'hft2ane-psnr-0', figures of today"),
        (lambda m: {"packages": {"float16": "A" * 64}}, "packages are not digests"),
        (lambda m: {"packages": {"../x": "a" * 64}}, "packages are not digests"),
        (lambda m: {"packages": {}}, "packages are not digests"),
        (lambda m: {"units": ("CPU_ONLY", "CPU_ONLY")}, "units are none, or one of them twice"),
        (lambda m: {"units": ("CPU_ONLY",)}, "of another package or unit"),
        (lambda m: {"fidelity": (), "latency": (), "unfinished": ()}, "nothing is measured"),
        (lambda m: {"fidelity": m.fidelity[:1] * 2}, "a bar twice"),
        (lambda m: bar(m, psnr=1e9), "PSNR is none from 0 to 300 dB"),
        (lambda m: bar(m, psnr_min=99.0), "not the least of its measures"),
        (lambda m: bar(m, measures=()), "not the least of its measures"),
        (lambda m: bar(m, measures=(replace(m.fidelity[0].measures[0], rows=0),)), "rows, length or cosine"),
        (lambda m: bar(m, measures=(replace(m.fidelity[0].measures[0], worst="a\nb"),)), "of several lines"),
        (lambda m: timed(m, rounds=19), "19 rounds after 3, at least 20"),
        (lambda m: timed(m, median_ms=0.1), "not least ≤ median ≤ p90"),
        (lambda m: timed(m, least_ms=-1.0), "not least ≤ median ≤ p90"),
        (lambda m: timed(m, load_s=-1.0), "its seconds are impossible"),
        (lambda m: timed(m, peak=2**60), "its memory is impossible"),
        (lambda m: timed(m, before=4 * 10**8), "its memory is impossible"),
        (lambda m: timed(m, function="main | x"), "of nothing here"),
        (lambda m: timed(m, variant="int8"), "of nothing here"),
        (lambda m: {"latency": m.latency[:1] * 2}, "a function twice on one unit"),
        (lambda m: resident(m, share_of_ops={"ane": 0.975}), "shares are not parts of a whole"),
        (lambda m: resident(m, share_of_cost={"ane": 1.5, "cpu": -0.5}), "shares are not parts of a whole"),
        (lambda m: resident(m, ops=411), "the plan knows 411 of 410 operations"),
        (lambda m: {"residency": m.residency * 2}, "of another package, or of one twice"),
        (lambda m: {"unfinished": (replace(m.unfinished[0], unit="ALL"),)}, "is of nothing here"),
        (lambda m: {"not_measured": ("x" * 601,)}, "a text is long"),
        (lambda m: {"failures": ("see /Users/me/x",)}, "names folders of a machine"),
        (lambda m: {"seconds": -1.0}, "seconds is -1.0"),
        (lambda m: {"coremltools": "9.0; rm"}, "coremltools is"),
    ],
)
def test_what_cannot_be_is_refused(change: Callable[[Measurement], dict[str, Any]], said: str, tmp_path: Path) -> None:
    good = synthetic()
    assert list(measurements.faults(good)) == []
    path = tmp_path / measurements.place(good)
    records.write(path, replace(good, **change(good)))
    with pytest.raises(BadInput, match=said) as failed:
        measurements.read_all(tmp_path)
    assert str(path) in str(failed.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is not a Measurement record"),
        ("[" * 100_000, "is not a Measurement record"),
        (json.dumps({**asdict(synthetic()), "more": 1}), "is not a Measurement record"),
        (json.dumps({**asdict(synthetic()), "units": ["GPU"]}), "units"),
        (json.dumps({**asdict(synthetic()), "seconds": float("nan")}), "."),
        (" " * (measurements.LARGEST + 1), "has more than 2 MB"),
    ],
)
def test_what_is_no_record_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / measurements.place(synthetic())
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        measurements.read_all(tmp_path)


def test_places_are_part_of_what_is_checked(tmp_path: Path) -> None:
    path = put(tmp_path, synthetic())
    other = path.rename(path.with_name("apple-m1-24F74.json"))
    with pytest.raises(BadInput, match=rf"belongs at {path}"):
        measurements.read_all(tmp_path)
    other.unlink()
    (path.parent / "notes.txt").write_text("x")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BadInput, match="2 of the files in") as failed:
        measurements.read_all(tmp_path)
    assert str(failed.value).count("is no JSON file") == 2


def test_a_bad_one_stops_no_night(tmp_path: Path) -> None:
    put(tmp_path, synthetic())
    (bad := tmp_path / "org--other" / "x.json").parent.mkdir()
    bad.write_text("{}")
    found, wrong = measurements.by_repo(tmp_path)
    assert list(found) == ["org/name-ane"]
    assert len(wrong) == 1
    assert str(bad) in wrong[0]


# ---- into a report


def report() -> Report:
    return Report(
        keys.PROTOCOL,
        keys.verify_key(PACKAGES, keys.PROTOCOL, keys.BACKEND),
        (),
        (),
        (measurements.ELSEWHERE,),
        1.0,
    )


def test_a_report_takes_those_of_its_packages() -> None:
    one, other = synthetic(), synthetic(replace(MAC, chip="Apple M1"))
    strange = synthetic(replace(MAC, chip="Apple M3"), {"float16": "b" * 64})
    old = replace(synthetic(replace(MAC, chip="Apple M4")), protocol="hft2ane-psnr-0")
    merged = measurements.merge(report(), PACKAGES, [one, strange, other, old])
    assert merged.macs == (other, one)
    assert merged.verify_key != report().verify_key
    assert merged.not_measured == tuple(
        f"on {m.mac}: plan of float16 main: plan did not finish in 600 s on CPU_AND_NE" for m in (other, one)
    )
    assert measurements.merge(merged, PACKAGES, [one]) == merged
    assert measurements.merge(report(), PACKAGES, [strange, old]) == report()


def test_a_mac_s_newer_measurement_takes_the_place_of_the_older() -> None:
    merged = measurements.merge(report(), PACKAGES, [synthetic()])
    newer = replace(synthetic(), seconds=10.0)
    again = measurements.merge(merged, PACKAGES, [newer])
    assert again.macs == (newer,)
    assert again.verify_key != merged.verify_key
    updated = synthetic(replace(MAC, macos="15.6", build="24G84"))
    assert len(measurements.merge(again, PACKAGES, [updated]).macs) == 2


def test_the_verify_key_without_macs_is_that_of_before() -> None:
    bare = keys.verify_key(PACKAGES, "p", "b")
    assert bare == keys.verify_key(PACKAGES, "p", "b", {})
    assert bare != keys.verify_key(PACKAGES, "p", "b", {"Apple M9": "c" * 64})
    assert measurements.merge(report(), PACKAGES, [synthetic()]).verify_key == keys.verify_key(
        PACKAGES, keys.PROTOCOL, keys.BACKEND, {str(MAC): keys.measurement_digest(synthetic())}
    )


# ---- into the plan


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Conversion:
    monkeypatch.setattr(keys, "toolchain", lambda: dict(test_plan.VERSIONS))
    return published()


def test_a_new_measurement_makes_a_new_card_and_then_nothing(released: Conversion) -> None:
    one = synthetic(packages=measurements.digests(released.packages), repo=ONE.repo)

    def decided(found: Measurement, of: Conversion) -> Job:
        (job,) = plan([ONE], World({ONE.id: UPSTREAM}, {ONE.repo: of}, measured={ONE.repo: [found]}))
        return job

    job = decided(one, released)
    assert (job.action, job.cause, job.why, job.macs) == ("card", "verify", f"measured on {MAC}", (one,))
    assert records.parse(records.dump(job), Job, "job.json") == job
    macs = measurements.named([one])
    key = keys.verify_key(one.packages, keys.PROTOCOL, keys.BACKEND, macs)
    card = keys.card_key(UPSTREAM.card, released.source.files[:1], key, keys.presentation_digest())
    done = replace(released, macs=macs, verify_key=key, card_key=card)
    assert (decided(one, done).action, decided(one, done).macs) == ("skip", ())
    assert decided(replace(one, seconds=10.0), done).action == "card"
    assert decided(replace(one, packages={"float16": "d" * 64}), released).action == "skip"
    (job,) = plan([ONE], World({ONE.id: UPSTREAM}, {ONE.repo: done}))  # a night without that folder undoes nothing
    assert job.action == "skip"


def test_what_is_settled_depends_on_the_measurements() -> None:
    def settled(found: list[Measurement]) -> str:
        return keys.settled(ONE, UPSTREAM, "1" * 40, "t", measurements.named_all(found))

    assert len({settled([]), settled([synthetic()]), settled([replace(synthetic(), seconds=10.0)])}) == 3


# ---- the table


def test_the_table_has_a_row_a_function() -> None:
    head, line, row = measurements.table([synthetic()]).splitlines()
    assert head.count("|") == line.count("|") == row.count("|")
    assert row == (
        "| Apple M9 Pro | 15.5 (24F74) | org/name-ane | float16 | main | 97.5 % | 90.0 % | 70.2 "
        "| 9.50 | 1.38 |  |  | 9.5 | 0.2 | 200 |"
    )
    late = Unfinished("float16", "main", "CPU_AND_NE", "load and time", "open did not finish in 600 s on CPU_AND_NE")
    row = measurements.table([replace(synthetic(), latency=synthetic().latency[:1], unfinished=(late,))])
    assert row.endswith("| 70.2 | 9.50 | did not finish |  |  |  |  |  |")


def test_the_command_checks_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measurements", "--from", str(tmp_path)]) == 0
    assert "no measurements" in capsys.readouterr().out
    put(tmp_path, synthetic())
    assert main(["measurements", "--from", str(tmp_path)]) == 0
    assert "| Apple M9 Pro |" in capsys.readouterr().out
    put(tmp_path, replace(synthetic(), seconds=-1.0))
    assert main(["measurements", "--from", str(tmp_path)]) == 2
    assert "seconds is -1.0" in capsys.readouterr().err
