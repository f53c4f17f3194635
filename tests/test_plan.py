"""The plan says the right thing about every state of the world, and nothing is left to do once it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hft2ane import keys, layout
from hft2ane.attempts import State, Untrue, failed
from hft2ane.errors import AccessDenied, BadInput, Hft2aneError, HubUnavailable, ModelNotFound
from hft2ane.plan import World, estimate, plan, subject, urgency
from hft2ane.records import dump, parse
from hft2ane.records.job import Job
from hft2ane.records.package import Package
from hft2ane.records.recipe import Gates, Recipe, Wanted
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Redo, Vanished
from hft2ane.records.source import CardFields, RemoteFile, Source, Upstream

VERSIONS = {"coremltools": "9.0", "numpy": "2.4.6", "torch": "2.13.0", "transformers": "5.23.0"}
NOW = datetime(2026, 1, 1, 3, tzinfo=UTC)
ONE = Wanted("owner/name", "org/name-ane", "m.yaml:3")
FILES = (
    RemoteFile("LICENSE", 5, "e" * 40, False),
    RemoteFile("README.md", 30, "c" * 40, False),
    RemoteFile("config.json", 10, "a" * 40, False),
    RemoteFile("model.safetensors", 20, "b" * 64, True),
    RemoteFile("onnx/model.onnx", 20, "f" * 64, True),
)
UPSTREAM = Upstream("owner/name", "1" * 40, FILES, CardFields("apache-2.0", language=("en",)))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions as if installed, so that the plan can be tested from a source tree."""
    monkeypatch.setattr(keys, "toolchain", lambda: dict(VERSIONS))


def release(job: Job, found: Upstream, protocol: str = keys.PROTOCOL) -> Conversion:
    """The record that doing the job would publish."""
    package = Package("float16", "Name.float16.mlpackage", f"digest of {job.id}", 1, "iOS16", (), "main")
    verify_key = keys.verify_key({"float16": package.digest}, protocol, keys.BACKEND)
    assert job.license is not None
    assert job.commit is not None
    return Conversion(
        source=Source(job.id, job.commit, job.files, found.card),
        recipe=job.recipe,
        family="bert",
        task="fill-mask",
        original="BertForMaskedLM",
        license=job.license,
        packages=(package,),
        labels=(),
        problem=None,
        convert_key=keys.convert_key(job.files, job.recipe, "bert"),
        verify_key=verify_key,
        card_key=keys.card_key(found.card, layout.legal(job.files), verify_key, keys.presentation_digest()),
        protocol=protocol,
        psnr={"rewrite": 120.0, "float16": 70.0},
        toolchain=keys.toolchain(),
        hft2ane="0.1.0",
        major=job.major,
    )


def single(
    one: Wanted = ONE,
    found: Upstream | Vanished | Hft2aneError = UPSTREAM,
    released: Conversion | Redo | Hft2aneError | None = None,
) -> Job:
    (job,) = plan([one], World({one.id: found}, {one.repo: released}))
    assert "\n" not in job.why
    assert (job.id, job.repo, job.recipe, job.gates) == (one.id, one.repo, one.recipe, one.gates)
    return job


def published() -> Conversion:
    """As read back from the Hub."""
    return parse(dump(release(single(), UPSTREAM)), Conversion, "conversion.json")


def edited(*changes: RemoteFile, gone: Sequence[str] = (), **more: Any) -> Upstream:
    """The next commit upstream."""
    files = {file.path: file for file in (*FILES, *changes) if file.path not in gone}
    return replace(UPSTREAM, commit="2" * 40, files=tuple(files.values()), **more)


def test_create() -> None:
    one = replace(ONE, recipe=Recipe(lengths=(64,)), gates=Gates(100, 60), license="apache-2.0")
    job = single(one)
    assert (job.action, job.why) == ("create", "nothing is published yet")
    assert (job.commit, job.license) == ("1" * 40, "apache-2.0")
    assert [file.path for file in job.files] == ["LICENSE", "README.md", "config.json", "model.safetensors"]
    assert parse(dump(job), Job, "job.json") == job


def test_skip() -> None:
    job = single(released=published())
    assert (job.action, job.why) == ("skip", "nothing has changed since commit 111111111111")


@pytest.mark.parametrize(
    "found",
    [
        edited(),
        edited(RemoteFile("README.md", 31, "9" * 40, False)),
        edited(gone=["README.md"]),
        edited(RemoteFile("onnx/model.onnx", 1, "9" * 64, True)),
        edited(RemoteFile("training_args.bin", 1, "9" * 64, True)),
    ],
)
def test_what_is_not_part_of_the_release_changes_nothing(found: Upstream) -> None:
    job = single(found=found, released=published())
    assert (job.action, job.why) == ("skip", "what has changed since commit 111111111111 is not part of the release")
    assert job.commit == "2" * 40


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (edited(RemoteFile("config.json", 10, "9" * 40, False)), "changed: config.json"),
        (edited(RemoteFile("tokenizer.json", 10, "9" * 40, False)), "new: tokenizer.json"),
        (
            edited(
                *(RemoteFile(f"model-0000{n}-of-00002.safetensors", 1, "9" * 64, True) for n in (1, 2)),
                RemoteFile("model.safetensors.index.json", 1, "9" * 40, False),
                gone=["model.safetensors"],
            ),
            "new: model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, model.safetensors.index.json; "
            "gone: model.safetensors",
        ),
    ],
)
def test_changed_files_are_named(found: Upstream, why: str) -> None:
    job = single(found=found, released=published())
    assert (job.action, job.why, job.commit) == ("convert", why, "2" * 40)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe(lengths=(64, 128)), "lengths 128 → 64, 128"),
        (Recipe(task="fill-mask", lengths=(32,)), "lengths 128 → 32; task none → fill-mask"),
    ],
)
def test_changed_recipe_is_told_by_field(recipe: Recipe, why: str) -> None:
    job = single(replace(ONE, recipe=recipe, major=2), released=published())
    assert (job.action, job.why, job.major) == ("convert", why, 2)


@pytest.mark.parametrize(
    ("recipe", "broken"),
    [
        (
            Recipe(lengths=(64, 128)),
            "a package of several lengths names its functions, one of a single length does not",
        ),
        (Recipe(lengths=(64,)), "no function takes 128 tokens"),
        (Recipe(variants=("int8",)), "Name.float16.mlpackage is gone"),
        (Recipe(task="feature-extraction"), "the task is feature-extraction instead of fill-mask"),
    ],
)
def test_what_would_break_apps_needs_a_major_version(recipe: Recipe, broken: str) -> None:
    job = single(replace(ONE, recipe=recipe), released=published())
    assert job.action == "blocked"
    assert job.why == (
        f"apps that use org/name-ane would break ({broken}): undo that at m.yaml:3, or write `major: 2` there; "
        "its tags stay as they are"
    )


@pytest.mark.parametrize(
    ("lengths", "blocked"),
    [((64, 128), False), ((32, 64, 128), False), ((64, 256), True), ((64, 128, 256), True), ((128,), True)],
)
def test_another_length_than_the_longest_breaks_nothing(lengths: tuple[int, ...], blocked: bool) -> None:
    before = release(single(replace(ONE, recipe=Recipe(lengths=(64, 128)))), UPSTREAM)
    job = single(replace(ONE, recipe=Recipe(lengths=lengths)), released=before)
    assert (job.action == "blocked") == blocked


def test_another_variant_or_the_task_by_its_name_breaks_nothing() -> None:
    for recipe in (Recipe(variants=("float16", "int8")), Recipe(task="fill-mask")):
        assert single(replace(ONE, recipe=recipe), released=published()).action == "convert"


def test_a_major_version_is_one_more() -> None:
    assert single(replace(ONE, major=3), released=published()).action == "blocked"
    job = single(replace(ONE, major=2), released=published())
    assert (job.action, job.why, job.cause) == ("card", "major 1 → 2", "request")
    assert single(replace(ONE, major=1), released=replace(published(), major=2)).action == "blocked"
    assert single(replace(ONE, major=2), released=replace(published(), major=2)).action == "skip"


def test_gates_and_the_expected_licence_rebuild_nothing() -> None:
    one = replace(ONE, gates=Gates(100, 60), license="apache-2.0")
    assert single(one, released=published()).action == "skip"


def test_changed_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()
    monkeypatch.setattr(keys, "toolchain", lambda: {**VERSIONS, "torch": "2.14.0", "numpy": "2.5.0"})
    job = single(released=before)
    assert (job.action, job.why) == ("convert", "numpy 2.4.6 → 2.5.0; torch 2.13.0 → 2.14.0")


def test_changed_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()
    monkeypatch.setattr(keys, "code_digest", lambda family: f"new code of {family}")
    job = single(released=before)
    assert (job.action, job.why) == ("convert", "the code that shapes the packages has changed")


def test_everything_that_changed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()
    monkeypatch.setattr(keys, "toolchain", lambda: {**VERSIONS, "torch": "2.14.0"})
    monkeypatch.setattr(keys, "code_digest", lambda family: "new")
    found = edited(RemoteFile("config.json", 10, "9" * 40, False), card=CardFields("apache-2.0"))
    (job,) = plan(
        [replace(ONE, recipe=Recipe(lengths=(8,)), major=2)],
        World({ONE.id: found}, {ONE.repo: before}),
        protocol="next",
    )
    assert job.action == "convert"
    assert job.why == (
        "changed: config.json; lengths 128 → 8; torch 2.13.0 → 2.14.0; the code that shapes the packages has changed; "
        "verification protocol changed: hft2ane-psnr-2 → next"
    )


def test_changed_protocol() -> None:
    (job,) = plan([ONE], World({ONE.id: UPSTREAM}, {ONE.repo: published()}), protocol="hft2ane-psnr-x")
    assert (job.action, job.why) == ("verify", "verification protocol changed: hft2ane-psnr-2 → hft2ane-psnr-x")
    (again,) = plan(
        [ONE],
        World({ONE.id: UPSTREAM}, {ONE.repo: release(job, UPSTREAM, "hft2ane-psnr-x")}),
        protocol="hft2ane-psnr-x",
    )
    assert again.action == "skip"


def test_figures_of_another_backend() -> None:
    other = replace(published(), verify_key=keys.verify_key({"float16": f"digest of {ONE.id}"}, keys.PROTOCOL, "else"))
    job = single(released=other)
    assert (job.action, job.why) == (
        "verify",
        "the published figures are of other packages, or were taken by another backend",
    )


def test_what_cannot_stay_is_made_again() -> None:
    job = single(released=Redo("the published record has schema\n 2, now it is 1"))
    assert (job.action, job.why) == ("convert", "the published record has schema 2, now it is 1")
    assert job.commit == UPSTREAM.commit


@pytest.mark.parametrize(
    ("gates", "why"),
    [
        (Gates(120, 70), None),
        (Gates(90, 70.5), "float16: published 70.0 dB, the gate is now 70.5"),
        (Gates(121, 50), "rewrite: published 120.0 dB, the gate is now 121"),
    ],
)
def test_gates_above_what_is_published(gates: Gates, why: str | None) -> None:
    job = single(replace(ONE, gates=gates), released=published())
    assert (job.action, job.why) == (("verify", why) if why else ("skip", job.why))


def test_a_release_of_another_original() -> None:
    """`publish` would refuse that repo after all the work."""
    before = published()
    job = single(released=replace(before, source=replace(before.source, id="else/name")))
    assert job.action == "blocked"
    assert job.why == (
        "what is published at org/name-ane was made from else/name: "
        "delete that repo, or name another with publish.name at m.yaml:3"
    )


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (edited(card=CardFields("apache-2.0", language=("en", "de"))), "language en → en, de"),
        (
            edited(card=CardFields("apache-2.0", pipeline_tag="fill-mask")),
            "language en → none; pipeline_tag none → fill-mask",
        ),
        (edited(RemoteFile("LICENSE", 5, "9" * 40, False)), "changed: LICENSE"),
        (edited(RemoteFile("NOTICE", 5, "9" * 40, False)), "new: NOTICE"),
    ],
)
def test_card_only(found: Upstream, why: str) -> None:
    job = single(found=found, released=published())
    assert (job.action, job.why, job.license) == ("card", why, "apache-2.0")


def test_another_licence_waits_for_a_person() -> None:
    found = edited(card=CardFields("mit", language=("en",)))
    job = single(found=found, released=published())
    assert job.action == "blocked"
    assert job.why == (
        "the original's licence was 'apache-2.0' when it was published and is 'mit' now: read what that changes, "
        "then write `license: mit` at m.yaml:3, or pause the entry"
    )
    confirmed = single(replace(ONE, license="mit"), found, published())
    assert (confirmed.action, confirmed.why, confirmed.license) == ("card", "license apache-2.0 → mit", "mit")


PINNED = replace(ONE, revision="7" * 40)


def test_a_pinned_commit_that_vanished_with_its_files_elsewhere() -> None:
    """`edited` is the next commit with the same files but a README."""
    head = edited(RemoteFile("README.md", 31, "9" * 40, False))
    job = single(PINNED, Vanished("7" * 40, head), published())
    assert (job.action, job.commit) == ("skip", "2" * 40)
    assert job.why.endswith(
        f"(the original has no revision {'7' * 40} any more, its head 222222222222 has the same files)"
    )
    job = single(replace(PINNED, recipe=Recipe(lengths=(8,)), major=2), Vanished("7" * 40, head), published())
    assert (job.action, job.commit) == ("convert", "2" * 40)


@pytest.mark.parametrize(
    ("head", "released", "words"),
    [
        (
            edited(RemoteFile("config.json", 1, "9" * 40, False)),
            True,
            "its head has other files (changed: config.json)",
        ),
        (edited(gone=["config.json"]), True, "and of its head: there is no config.json"),
        (edited(), False, "has no revision 7777777777777777777777777777777777777777 any more: write another"),
    ],
)
def test_a_pinned_commit_that_vanished_for_good(head: Upstream, released: bool, words: str) -> None:
    job = single(PINNED, Vanished("7" * 40, head), published() if released else None)
    assert job.action == "blocked"
    assert words in job.why
    assert "write another `revision:` at m.yaml:3" in job.why


def test_card_template(monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()
    monkeypatch.setattr(keys, "presentation_digest", lambda: "new")
    assert (single(released=before).action, single(released=before).why) == ("card", "the card's template has changed")


def test_the_most_urgent_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """New by a manifest, changed by its author, to be measured again, made with older tools; then what is not done."""
    names = ("tools", "figures", "author", "new", "gone", "done")
    wanted = [replace(ONE, id=f"owner/{name}", repo=f"org/{name}") for name in names]
    upstream: dict[str, Upstream | Hft2aneError] = {one.id: replace(UPSTREAM, id=one.id) for one in wanted}
    released: dict[str, Conversion | Redo | Hft2aneError | None] = {
        job.repo: release(job, UPSTREAM)
        for job in plan(wanted, World(upstream, dict.fromkeys((one.repo for one in wanted), None)))
    }
    old = {**VERSIONS, "torch": "2.12.0"}
    made, family = released["org/tools"], "bert"
    assert isinstance(made, Conversion)
    key = keys.convert_key(made.source.files, made.recipe, family, versions=old)
    released["org/tools"] = replace(made, toolchain=old, convert_key=key)
    made = released["org/figures"]
    assert isinstance(made, Conversion)
    released["org/figures"] = replace(made, protocol="older")
    released["org/new"] = None
    upstream["owner/author"] = replace(edited(RemoteFile("vocab.txt", 1, "9" * 40, False)), id="owner/author")
    upstream["owner/gone"] = ModelNotFound("not found")
    jobs = plan(wanted, World(upstream, released, {"org/left-ane": "owner/left"}))
    assert [(job.id.partition("/")[2], job.action, job.cause) for job in jobs] == [
        ("new", "create", "request"),
        ("author", "convert", "upstream"),
        ("figures", "verify", "verify"),
        ("tools", "convert", "toolchain"),
        ("gone", "held", None),
        ("left", "orphan", None),
        ("done", "skip", None),
    ]
    assert "no manifest wants it" in jobs[-2].why


def test_one_reason_of_several_decides_how_urgent_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()
    monkeypatch.setattr(keys, "toolchain", lambda: {**VERSIONS, "torch": "2.14.0"})
    assert single(released=before).cause == "toolchain"
    assert single(found=edited(RemoteFile("config.json", 1, "9" * 40, False)), released=before).cause == "upstream"
    assert single(replace(ONE, recipe=Recipe(lengths=(8,)), major=2), released=before).cause == "request"


def test_work_is_counted_in_tera_operations() -> None:
    """90 MB of fp32 weights, at 128 tokens: 2 × 22.5 million × 128 × 30 rows × (original, rewrite, package)."""
    weights = RemoteFile("model.safetensors", 90_000_000, "b" * 64, True)
    assert estimate("create", [weights, FILES[0]], Recipe()) == pytest.approx(0.518, abs=0.001)
    assert estimate("verify", [weights], Recipe(lengths=(128, 256))) == pytest.approx(3 * 0.518, abs=0.003)
    assert estimate("convert", [weights], Recipe(variants=("float16", "int8"))) == pytest.approx(0.691, abs=0.001)
    assert estimate("card", [weights], Recipe()) == 0
    assert single(found=edited(weights)).work == 0.518


# ---- what earlier runs remember


def remembered(failures: int, *, kind: str = "GateFailed", subject_of: Job | None = None) -> State:
    job, found = subject_of or single(), None
    for _ in range(failures):
        found = failed(found, subject(job, "bert"), "bert", kind, "12.5 dB", NOW)
    return State({} if found is None else {ONE.repo: found})


def at(
    hours: float, state: State, one: Wanted = ONE, found: Upstream | Vanished | Hft2aneError = UPSTREAM, **more: Any
) -> Job:
    world = World({ONE.id: found}, {ONE.repo: more.get("released")}, state=state, now=NOW + timedelta(hours=hours))
    (job,) = plan([one], world)
    return job


def test_what_failed_waits_and_is_tried_again() -> None:
    job = at(1, remembered(1))
    assert job.action == "held"
    assert job.why == (
        "to create (nothing is published yet): "
        "it failed with '12.5 dB', and is tried again from 2026-01-01 07:00 UTC on"
    )
    assert at(4, remembered(1)).action == "create"
    assert at(127, remembered(9, kind="NoSpace")).action == "create"


def test_five_equal_failures_hold_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = remembered(5)
    assert at(9999, state).action == "held"
    assert at(0, state, replace(ONE, recipe=Recipe(lengths=(8,)))).action == "create"
    assert at(0, state, replace(ONE, gates=Gates(float16=10))).action == "create"
    assert at(0, state, found=edited(RemoteFile("config.json", 1, "9" * 40, False))).action == "create"
    assert at(0, state, found=edited(RemoteFile("onnx/model.onnx", 1, "9" * 64, True))).action == "held"
    monkeypatch.setattr(keys, "implementation_digest", lambda family: f"new code of {family}")
    assert at(0, state).action == "create"


def test_work_on_another_family_does_not_count() -> None:
    bert, albert = keys.implementation_digest("bert"), keys.implementation_digest("albert")
    assert bert != albert
    assert keys.implementation_digest("no-such-family") == keys.implementation_digest("nor-this")


def test_what_needs_nothing_is_not_held() -> None:
    assert at(0, remembered(5), released=published()).action == "skip"


def test_a_published_models_original_is_deleted_only_after_a_day() -> None:
    lost = ModelNotFound("there is no owner/name")
    first = at(0, State(), found=lost, released=published())
    assert first.action == "held"
    assert "for the first time, and counts as deleted after 24 hours" in first.why
    since = State(gone={ONE.repo: NOW})
    assert at(23.9, since, found=lost, released=published()).action == "held"
    job = at(24, since, found=lost, released=published())
    assert job.action == "blocked"
    assert "deleted or private, not found since 2026-01-01 03:00 UTC: pause the entry at m.yaml:3" in job.why
    assert at(99, since, released=published()).action == "skip"  # it is back


def test_a_wrong_name_is_told_at_once() -> None:
    assert at(0, State(), found=ModelNotFound("there is no owner/name")).action == "blocked"


def test_retired_is_left_alone() -> None:
    retired = replace(published(), retired="there is a better one")
    for found in (UPSTREAM, ModelNotFound("gone"), edited(RemoteFile("config.json", 1, "9" * 40, False))):
        job = single(replace(ONE, recipe=Recipe(lengths=(8,))), found, retired)
        assert (job.action, job.why) == ("skip", "retired: there is a better one")


@pytest.mark.parametrize("mend", ["convert", "verify", "card"])
def test_what_an_audit_found_is_mended(mend: Any) -> None:
    state = State(untrue={ONE.repo: Untrue("5" * 40, mend, "LICENSE is not there")})
    found, released = {ONE.id: UPSTREAM}, {ONE.repo: published()}
    (job,) = plan([ONE], World(found, released, heads={ONE.repo: "5" * 40}, state=state))
    assert (job.action, job.why) == (mend, "an audit of org/name-ane found: LICENSE is not there")
    assert job.cause == "request"
    (job,) = plan([ONE], World(found, released, heads={ONE.repo: "6" * 40}, state=state))
    assert job.action == "skip"  # another version has been published since


# ---- waves


def many(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Wanted], World]:
    """Models that were made with an older torch, the first the largest."""
    wanted = [replace(ONE, id=f"owner/m{n:02}", repo=f"org/m{n:02}") for n in range(count)]
    weights = [RemoteFile("model.safetensors", 10**9 * (count - n), "b" * 64, True) for n in range(count)]
    upstream: dict[str, Any] = {
        one.id: replace(UPSTREAM, id=one.id, files=(FILES[2], file)) for one, file in zip(wanted, weights, strict=True)
    }
    jobs = plan(wanted, World(upstream, {one.repo: None for one in wanted}))
    released: dict[str, Any] = {job.repo: release(job, upstream[job.id]) for job in jobs}
    monkeypatch.setattr(keys, "toolchain", lambda: {**VERSIONS, "torch": "2.14.0"})
    return wanted, World(upstream, released, now=NOW)


def to_do(jobs: Sequence[Job]) -> list[str]:
    return [job.repo for job in jobs if job.to_do]


def test_a_wave_is_some_models_a_night_the_smallest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, world = many(30, monkeypatch)
    jobs = plan(wanted, world, limit=7)
    assert sorted(to_do(jobs)) == [f"org/m{n}" for n in range(23, 30)]
    assert {job.action for job in jobs if not job.to_do} == {"held"}
    assert jobs[-1].why == (
        "to convert (torch 2.13.0 → 2.14.0): 7 models a night are done for reasons that many have, "
        "and it is not yet its turn"
    )
    assert len(to_do(plan(wanted, world))) == 20
    done = {**world.published, **{job.repo: release(job, world.upstream[job.id]) for job in jobs if job.to_do}}  # type: ignore[arg-type]
    following = plan(wanted, replace(world, published=done), limit=7)
    assert sorted(to_do(following)) == [f"org/m{n}" for n in range(16, 23)]


def test_what_a_manifest_asks_for_or_an_author_changed_is_in_no_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, world = many(4, monkeypatch)
    upstream = {
        **world.upstream,
        "owner/m00": replace(edited(RemoteFile("vocab.txt", 1, "9" * 40, False)), id="owner/m00"),
    }
    published = {**world.published, "org/m01": None}
    assert to_do(plan(wanted, replace(world, upstream=upstream, published=published), limit=0)) == [
        "org/m01",
        "org/m00",
    ]


def test_a_wave_stops_when_too_many_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, world = many(30, monkeypatch)
    jobs = {job.repo: job for job in plan(wanted, world, limit=30)}

    def state(done: int, failing: int) -> State:
        tried = [f"org/m{n:02}" for n in range(failing)]
        attempts = {repo: failed(None, subject(jobs[repo], "bert"), "bert", "GateFailed", "x", NOW) for repo in tried}
        return State(attempts, renewed={f"org/n{n}": keys.today() for n in range(done)})

    def tonight(state: State, hours: float = 1) -> list[str]:
        return to_do(plan(wanted, replace(world, state=state, now=NOW + timedelta(hours=hours)), limit=5))

    assert len(tonight(state(8, 2))) == 5
    assert tonight(state(7, 2)) == []
    assert len(tonight(state(2, 2))) == 5  # too few to say
    # Those that fail are tried again in their time, and decide how it goes on.
    assert tonight(state(7, 2), hours=5) == ["org/m00", "org/m01"]
    assert len(tonight(replace(state(7, 2), renewed={f"org/n{n}": "another wave" for n in range(7)}))) == 5
    (why,) = {job.why for job in plan(wanted, replace(world, state=state(7, 2)), limit=5) if job.repo == "org/m09"}
    assert "2 of the 9 models that this wave has tried fail, more than 20%" in why


def test_paused_asks_nothing() -> None:
    (job,) = plan([replace(ONE, paused="waits for the author")], World({}, {}))
    assert (job.action, job.why) == ("blocked", "paused: waits for the author")


PICKLE = (FILES[2], RemoteFile("pytorch_model.bin", 20, "b" * 64, True))


@pytest.mark.parametrize(
    ("one", "found", "released", "words"),
    [
        (ONE, ModelNotFound("there is no owner/name"), None, "there is no owner/name"),
        (ONE, HubUnavailable("two\n  lines"), None, "two lines"),
        (ONE, replace(UPSTREAM, id="owner/new"), None, "now called owner/new: write that at m.yaml:3"),
        (ONE, replace(UPSTREAM, id="Owner/name"), None, "now called Owner/name"),
        (ONE, replace(UPSTREAM, files=PICKLE), None, "only in pytorch_model.bin"),
        (ONE, replace(UPSTREAM, files=()), None, "no config.json"),
        (ONE, replace(UPSTREAM, card=CardFields()), None, "names no licence"),
        (ONE, replace(UPSTREAM, card=CardFields("cc-by-nc-4.0")), None, "non-commercial"),
        (replace(ONE, license="mit"), UPSTREAM, None, "expects 'mit'"),
        (ONE, UPSTREAM, BadInput("conversion.json is not a record"), "org/name-ane cannot be read: conversion.json is"),
    ],
)
def test_blocked(one: Wanted, found: Upstream | Hft2aneError, released: Hft2aneError | None, words: str) -> None:
    job = single(one, found, released)
    assert job.action == "blocked"
    assert words in job.why


def test_blocked_though_published() -> None:
    assert single(found=AccessDenied("gated"), released=published()).action == "blocked"


def test_without_an_answer_nothing_is_planned() -> None:
    """A caller that forgot to ask must not be told to create."""
    with pytest.raises(KeyError):
        plan([ONE], World({ONE.id: UPSTREAM}, {}))


OIDS = st.sampled_from(["1" * 40, "2" * 40])
ERRORS = st.sampled_from([ModelNotFound("not found"), HubUnavailable("no answer")])
REDO = st.just(Redo("the publication was not finished"))


@st.composite
def worlds(
    draw: st.DrawFn,
) -> tuple[
    list[Wanted], dict[str, Upstream | Vanished | Hft2aneError], dict[str, Conversion | Redo | Hft2aneError | None]
]:
    """Some models wanted, what the Hub says of each, and what an earlier night published, perhaps of something else."""
    numbers = draw(st.lists(st.integers(0, 20), unique=True, max_size=5))
    wanted, upstream, published = [], {}, {}
    for number in numbers:
        one = Wanted(
            f"owner/m{number}",
            f"org/m{number}",
            "m.yaml:1",
            recipe=Recipe(lengths=draw(st.sampled_from([(128,), (64, 128)]))),
            gates=Gates(float16=draw(st.sampled_from([50.0, 65.0]))),
            paused=draw(st.sampled_from([None, None, None, "a reason"])),
            major=draw(st.sampled_from([1, 2, 2])),
        )
        wanted.append(one)
        upstream[one.id] = draw(
            st.one_of(upstreams(one), upstreams(one), ERRORS, st.builds(Vanished, st.just("v1"), upstreams(one)))
        )
        published[one.repo] = draw(st.one_of(st.none(), ERRORS, REDO, releases(one)))
    return wanted, upstream, published


@st.composite
def upstreams(draw: st.DrawFn, one: Wanted) -> Upstream:
    paths = ["config.json", "model.safetensors", *draw(st.sets(st.sampled_from(["LICENSE", "README.md", "vocab.txt"])))]
    files = tuple(RemoteFile(path, 1, draw(OIDS), False) for path in draw(st.permutations(paths)))
    return Upstream(one.id, draw(OIDS), files, CardFields(draw(st.sampled_from(["mit", "apache-2.0", "other"]))))


@st.composite
def releases(draw: st.DrawFn, one: Wanted) -> Conversion:
    found = replace(draw(upstreams(one)), card=CardFields("mit"))
    recipe = Recipe(lengths=draw(st.sampled_from([(128,), (64, 128)])))
    job = Job("create", "", one.id, one.repo, found.commit, layout.select(found.files), recipe, license="mit")
    done = release(job, found, draw(st.sampled_from([keys.PROTOCOL, "older"])))
    return replace(done, psnr={"rewrite": 120.0, "float16": draw(st.sampled_from([55.0, 70.0]))})


@settings(deadline=None)
@given(worlds(), st.randoms())
def test_order_does_not_matter(world: tuple[Any, Any, Any], random: Any) -> None:
    wanted, upstream, published = world
    unwanted = {"org/old-ane": "owner/old", "org/older-ane": "owner/old"}
    jobs = plan(wanted, World(upstream, published, unwanted))
    assert jobs == sorted(jobs, key=urgency)

    def shuffled(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {key: mapping[key] for key in random.sample(sorted(mapping), len(mapping))}

    def mix(found: Upstream) -> Upstream:
        return replace(found, files=tuple(random.sample(found.files, len(found.files))))

    mixed = {
        id: mix(found)
        if isinstance(found, Upstream)
        else Vanished("v1", mix(found.head))
        if isinstance(found, Vanished)
        else found
        for id, found in upstream.items()
    }
    other = World(shuffled(mixed), shuffled(published), shuffled(unwanted))
    assert plan(random.sample(wanted, len(wanted)), other) == jobs


@settings(deadline=None)
@given(worlds())
def test_once_done_nothing_is_left(world: tuple[Any, Any, Any]) -> None:
    wanted, upstream, published = world
    jobs = plan(wanted, World(upstream, published))
    assert len(jobs) == len(wanted)
    assert all(job.why for job in jobs)
    done = dict(published)
    for job in jobs:
        if job.to_do:
            found = upstream[job.id]
            done[job.repo] = release(job, found.head if isinstance(found, Vanished) else found)
    again = plan(wanted, World(upstream, done))
    stuck = {job.id: job.action for job in jobs if not job.to_do and job.action != "skip"}
    assert set(stuck.values()) <= {"blocked", "held"}
    assert {job.id: job.action for job in again} == dict.fromkeys((one.id for one in wanted), "skip") | stuck
