"""What planning asks the Hub, on a Hub on this machine: as little as it can, and never less than it must."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hft2ane import keys, layout, measurements, records, state
from hft2ane.errors import TokenRefused
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.night import Outcome
from hft2ane.records.recipe import Wanted
from hft2ane.records.release import Conversion
from hft2ane.survey import Survey, model_type, owners, remember, survey
from tests.synthetic import synthetic
from tests.test_plan import VERSIONS, release

NAMES = [f"m{n}" for n in range(6)]
WANTED = [Wanted(f"up/{name}", f"org/{name}-ane", "m.yaml:1") for name in NAMES]
TAGS = "---\ntags: [coreml, apple-neural-engine]\n---\n"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "toolchain", lambda: dict(VERSIONS))


class World:
    """Originals, and what would have been published of them."""

    def __init__(self, folder: Path, local: LocalHub) -> None:
        self.folder, self.local = folder, local
        self.hub = Hub(local.url, local.token)
        self.hub.waits = (0.0,)
        for name in NAMES:
            self.original(name, b"weights")
        for job in survey(WANTED, self.hub).jobs:
            self.publish(job.repo, records.dump(release(job, self.hub.look(job.id))))

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        place = self.folder / repo
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return self.local.add(repo, place)

    def original(self, name: str, weights: bytes) -> None:
        card = b"---\nlicense: mit\n---\n"
        self.put(f"up/{name}", {"config.json": b"{}", "model.safetensors": weights, "README.md": card})

    def publish(self, repo: str, record: bytes) -> None:
        commit = self.put(repo, {"conversion.json": record, "README.md": TAGS.encode()})
        self.hub.tag(repo, f"v{len(self.local.tags(repo)) + 1}", commit)

    def run(self, models: list[Wanted] = WANTED, complete: bool = True) -> tuple[Survey, list[str]]:
        """A run in which what is to be done fails to be; and what it asked the Hub."""
        before = len(self.local.calls())
        found = survey(models, self.hub, complete)
        asked = self.local.calls()[before:]
        outcomes = [
            Outcome(job.id, job.repo, job.action, job.why, "failed" if job.to_do else job.action, "x", kind="NoSpace")  # type: ignore[arg-type]
            for job in found.jobs
        ]
        after = remember(found, outcomes, datetime.now(UTC))
        assert state.write(self.hub, found.world.state, after, owners(models)) == []
        return found, asked


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LocalHub(tmp_path / "hub") as local:
        yield World(tmp_path, local)


def actions(found: Survey) -> dict[str, str]:
    return {job.id.partition("/")[2]: job.action for job in found.jobs}


def test_what_has_not_changed_is_one_request(world: World) -> None:
    first, asked = world.run()
    assert set(actions(first).values()) == {"skip"}
    assert len(asked) == 2 + 3 * len(WANTED)  # no state yet, the list; the original, the record, its tag
    again, asked = world.run()
    assert actions(again) == actions(first)
    assert {job.why for job in again.jobs} == {"nothing has changed since the last run"}
    assert len(asked) == 3 + len(WANTED)  # the state's head and file, the list; the original
    assert len([call for call in asked if "/api/models/up/" in call]) == len(WANTED)
    _, asked = world.run()
    assert len(asked) == 3 + len(WANTED)


def test_what_has_changed_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    world.original("m1", b"new weights")
    record = json.loads(world.local.files("org/m2-ane")["conversion.json"])
    world.publish("org/m2-ane", json.dumps(record | {"protocol": "older"}).encode())
    changed = [
        replace(each, recipe=replace(each.recipe, lengths=(8,)), major=2) if each.id == "up/m3" else each
        for each in WANTED
    ]
    found, asked = world.run(changed)
    assert actions(found) == {
        "m0": "skip", "m1": "convert", "m2": "verify", "m3": "convert", "m4": "skip", "m5": "skip",
    }  # fmt: skip
    assert len(asked) == 3 + len(WANTED) + 2 * 3
    monkeypatch.setattr(keys, "toolchain", lambda: {**VERSIONS, "torch": "9"})
    assert set(actions(survey(WANTED, world.hub)).values()) == {"convert"}


def test_a_measurement_of_a_mac_is_read(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic one; what is settled is looked at again for it, and a file that is none is a warning."""
    record = records.parse(world.local.files("org/m1-ane")["conversion.json"], Conversion, "m1")
    packages = {"float16": "a" * 64}
    key = keys.verify_key(packages, keys.PROTOCOL, keys.BACKEND)
    source = record.source
    done = replace(
        record,
        packages=(replace(record.packages[0], digest="a" * 64),),
        verify_key=key,
        card_key=keys.card_key(source.card, layout.legal(source.files), key, keys.presentation_digest()),
    )
    world.publish("org/m1-ane", records.dump(done))
    world.run()
    one = synthetic(packages=packages, repo="org/m1-ane")
    monkeypatch.setattr(measurements, "FOLDER", tmp_path / "measurements")
    records.write(measurements.FOLDER / measurements.place(one), one)
    (measurements.FOLDER / "org--m1-ane" / "x.json").write_text("{}")
    found, _ = world.run()
    assert {name: action for name, action in actions(found).items() if action != "skip"} == {"m1": "card"}
    assert found.jobs[0].macs == (one,)
    assert len(found.warnings) == 1
    assert "x.json is not a Measurement record" in found.warnings[0]


def test_a_repo_that_is_gone_is_made_again(world: World) -> None:
    world.run()
    world.local.delete("org/m4-ane")
    assert actions(survey(WANTED, world.hub))["m4"] == "create"


def test_a_part_of_the_models_forgets_nothing_of_the_others(world: World) -> None:
    world.run()
    world.run(WANTED[:1], complete=False)
    _, asked = world.run()
    assert len(asked) == 3 + len(WANTED)


def test_a_token_that_is_not_accepted_is_said_once(world: World) -> None:
    """And not of each model that it is blocked: with such a token the Hub answers nothing, of public repos neither."""
    with pytest.raises(TokenRefused, match="renew HF_TOKEN"):
        survey(WANTED, Hub(world.local.url, "hf_revoked"))


def test_orphans_are_listed_and_left_alone(world: World) -> None:
    before = world.local.files("org/m5-ane")
    found, _ = world.run(WANTED[:-1])
    assert actions(found)["m5"] == "orphan"
    assert world.local.files("org/m5-ane") == before
    assert "m5" not in actions(survey(WANTED[:-1], world.hub, complete=False))


def test_without_the_list_each_repo_is_looked_at(world: World) -> None:
    world.run()
    world.local.fail(r"GET /api/models\?author", times=9, status=500)
    found = survey(WANTED[:-1], world.hub)
    assert set(actions(found).values()) == {"skip"}
    assert "cannot be listed" in found.warnings[0]


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (b'{"model_type": "bert"}', "bert"),
        (
            b'{"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}, '
            b'"decoder": {"model_type": "roberta"}}',
            "encoder-decoder/bert/roberta",
        ),
        (b'{"model_type": 7}', ""),
        (b"[]", ""),
        (b"{", ""),
    ],
)
def test_the_family_of_what_failed(tmp_path: Path, config: bytes, family: str) -> None:
    assert model_type(tmp_path) == ""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_bytes(config)
    assert model_type(tmp_path) == family


def test_what_is_not_found_is_remembered_and_forgotten(world: World) -> None:
    world.local.delete("up/m0")
    first, _ = world.run()
    assert actions(first)["m0"] == "held"
    second, _ = world.run()
    since = second.world.state.gone["org/m0-ane"]
    assert since == first.world.now
    assert survey(WANTED, world.hub).world.state.gone == {"org/m0-ane": since}
    world.original("m0", b"weights")
    world.run()
    assert survey(WANTED, world.hub).world.state.gone == {}
