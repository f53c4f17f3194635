"""The Hub client against a Hub on this machine, over real sockets, with faults."""

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import get_session

from hft2ane import connection, pace, records
from hft2ane import hub as module
from hft2ane.blobs import digest, inside
from hft2ane.errors import (
    AccessDenied,
    BadInput,
    CorruptFile,
    Hft2aneError,
    HubUnavailable,
    ModelNotFound,
    NoSpace,
    TokenRefused,
)
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub, transfer
from hft2ane.records.recipe import Recipe
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Redo, Vanished
from hft2ane.records.source import CardFields, RemoteFile, Source, Upstream, card_fields

MODEL = "org/model"
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: cut in the middle, more than one piece has arrived
CONFIG = b'{"model_type": "bert"}\n'
CARD = b"---\nlicense: mit\nlanguage: [en, de]\n---\n# A model\n"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def hub(local: LocalHub) -> Hub:
    hub = Hub(local.url, local.token)
    hub.waits = (0.0, 0.0, 0.0)
    return hub


@pytest.fixture
def model(local: LocalHub, tmp_path: Path) -> str:
    """A small model on the Hub; its commit."""
    return local.add(
        MODEL, folder(tmp_path / "model", {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": CARD})
    )


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return waits


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def here(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- looking


def test_look(hub: Hub, model: str) -> None:
    seen = hub.look(MODEL)
    assert (seen.id, seen.commit) == (MODEL, model)
    files = {file.path: file for file in seen.files}
    assert files["model.safetensors"] == RemoteFile(
        "model.safetensors", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest(), True
    )
    blob = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert files["config.json"] == RemoteFile("config.json", len(CONFIG), blob, False)
    assert seen.card == CardFields(license="mit", language=("en", "de"))
    assert hub.look(MODEL, model) == seen


def test_look_is_one_request(hub: Hub, local: LocalHub, model: str) -> None:
    hub.look(MODEL)
    assert len(local.calls("")) == 1


def test_a_renamed_model_answers_by_its_new_name(hub: Hub, local: LocalHub, model: str) -> None:
    local.rename(MODEL, "org/new")
    assert hub.look(MODEL).id == "org/new"


@pytest.mark.parametrize(
    ("id", "revision", "says"),
    [
        ("org/nothing", "main", "no such repo"),
        (MODEL, "v9", "no such revision"),
        ("../../etc/passwd", "main", "no name of a Hub model"),
        ("org/model/tree", "main", "no name of a Hub model"),
        ("", "main", "no name of a Hub model"),
    ],
)
def test_what_is_not_there(hub: Hub, model: str, id: str, revision: str, says: str) -> None:
    with pytest.raises(ModelNotFound, match=says) as error:
        hub.look(id, revision)
    one_line(error)


def test_a_private_model_is_for_its_owners(local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.add(MODEL, folder(tmp_path / "model", {"config.json": CONFIG}), private=True)
    assert Hub(local.url, local.token).look(MODEL).id == MODEL
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ModelNotFound, match="or it is private and HF_TOKEN may not see it"):
        Hub(local.url).look(MODEL)


def test_a_gated_model_is_not_only_looked_at(local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.add(MODEL, folder(tmp_path / "model", {"config.json": CONFIG}), gated=True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(AccessDenied, match="gated: accept its terms"):
        Hub(local.url, local.read_token).look(MODEL)


def test_a_bad_token_is_said_but_not_shown(local: LocalHub, model: str) -> None:
    with pytest.raises(TokenRefused, match="renew HF_TOKEN") as error:
        Hub(local.url, "hf_thisTokenIsNotOneOfTheirs").look(MODEL)
    assert "hf_this" not in one_line(error)


def test_a_token_is_blanked_in_what_a_server_says(local: LocalHub, model: str) -> None:
    local.fail("revision", times=1, status=418, headers={"X-Error-Message": f"no {local.token} today"})
    with pytest.raises(Hft2aneError, match="418") as error:
        Hub(local.url, local.token).look(MODEL)
    assert local.token not in one_line(error)


def test_look_all_gives_errors_as_values(hub: Hub, model: str) -> None:
    seen = hub.look_all([(MODEL, "main"), ("org/nothing", "main")])
    assert isinstance(seen[MODEL], Upstream)
    assert isinstance(seen["org/nothing"], ModelNotFound)
    assert list(seen) == [MODEL, "org/nothing"]


def test_a_revision_that_is_gone_comes_with_the_head(hub: Hub, model: str) -> None:
    assert hub.look_all([(MODEL, "0" * 40)]) == {MODEL: Vanished("0" * 40, hub.look(MODEL))}


@pytest.mark.parametrize(
    "card",
    [
        None,
        [],
        "mit",
        {"license": ["mit"], "language": 7, "pipeline_tag": {}, "license_name": "", "license_link": None},
    ],
)
def test_odd_cards_count_as_empty(card: object) -> None:
    assert card_fields(card) == CardFields()


def test_card_fields() -> None:
    card = {
        "license": "other",
        "license_name": "x",
        "license_link": "LICENSE",
        "language": "en",
        "pipeline_tag": "fill-mask",
    }
    assert card_fields(card) == CardFields("other", "x", "LICENSE", ("en",), "fill-mask")
    assert card_fields({"language": ["en", False, None]}).language == ("en",)


# ---- retries


@pytest.mark.parametrize(
    "fault",
    [{"status": 408}, {"status": 429}, {"status": 500}, {"status": 503}, {"drop": "before"}, {"drop": "after"}],
    ids=str,
)
def test_what_passes_is_tried_again(hub: Hub, local: LocalHub, model: str, fault: dict[str, Any]) -> None:
    local.fail("revision", times=2, **fault)
    assert hub.look(MODEL).commit == model
    assert len(local.calls("revision")) == 3


def test_what_lasts_is_given_up(hub: Hub, local: LocalHub, model: str, slept: list[float]) -> None:
    hub.waits = (1.0, 2.0, 4.0)
    local.fail("revision", times=9, status=503)
    with pytest.raises(HubUnavailable, match=f"cannot look up {MODEL} at main: {hub.host} answers 503") as error:
        hub.look(MODEL)
    one_line(error)
    assert slept == [1.0, 2.0, 4.0]
    assert len(local.calls("revision")) == 4


@pytest.mark.parametrize(("headers", "waited"), [({"Retry-After": "7"}, 7.0), ({"ratelimit": '"api";r=0;t=55'}, 56.0)])
def test_a_server_gets_the_time_it_asks_for(
    hub: Hub, local: LocalHub, model: str, slept: list[float], headers: dict[str, str], waited: float
) -> None:
    local.fail("revision", times=1, status=429, headers=headers)
    assert hub.look(MODEL).commit == model
    assert slept == [waited]


def test_but_not_hours(hub: Hub, local: LocalHub, model: str, slept: list[float]) -> None:
    local.fail("revision", times=1, status=429, headers={"Retry-After": "7200"})
    with pytest.raises(HubUnavailable, match="asks to wait 7200 s"):
        hub.look(MODEL)
    assert slept == []


def test_a_hub_that_is_down(local: LocalHub, tmp_path: Path, slept: list[float]) -> None:
    with LocalHub(tmp_path / "gone") as gone:
        url = gone.url
    hub = Hub(url, local.token)
    for call in (lambda: hub.look(MODEL), lambda: hub.conversion(MODEL), lambda: hub.tags(MODEL)):
        slept.clear()
        with pytest.raises(HubUnavailable, match=f"{hub.host} cannot be reached") as error:
            call()
        one_line(error)
        assert slept == list(Hub.waits)
    assert sum(Hub.waits) < 10


def test_a_hub_that_hangs(hub: Hub, local: LocalHub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOOK_SECONDS", 0.1)
    local.fail("revision", times=4, delay=0.5)
    with pytest.raises(HubUnavailable, match="did not answer in time"):
        hub.look(MODEL)


@pytest.mark.parametrize("pattern", ["GET .*revision", "GET .*refs", "GET /_cdn", "POST .*commit"])
def test_a_hub_that_drips(
    hub: Hub, local: LocalHub, model: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, and they would take an hour; out of the client's own calls too."""
    hub.waits = ()
    monkeypatch.setattr(pace, "SECONDS", 0.3)
    (tmp_path / "new.txt").write_text("x")
    found = hub.look(MODEL)
    add = {"new.txt": tmp_path / "new.txt"}
    calls: dict[str, Callable[[], object]] = {
        "GET .*revision": lambda: hub.look(MODEL),
        "GET .*refs": lambda: hub.tags(MODEL),
        "GET /_cdn": lambda: hub.download(MODEL, model, found.files, tmp_path / "got"),
        "POST .*commit": lambda: hub.retry(lambda: hub.commit(MODEL, add, (), parent=model, title="x", about="")),
    }
    local.fail(pattern, drip=0.05)
    with pytest.raises(HubUnavailable, match=r"is too slow \(it sent 0.000 MB in \d s\); try later") as error:
        calls[pattern]()
    one_line(error)
    calls[pattern]()


def test_what_is_sent_keeps_the_pace_too(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.waits = ()
    monkeypatch.setattr(pace, "SECONDS", -1.0)
    monkeypatch.setattr(pace, "RATE", 1e9)
    with pytest.raises(HubUnavailable, match=r"is too slow \(it took"):
        hub.create("org/other")


def test_a_download_that_is_cut_again_and_again_has_an_end(
    hub: Hub, local: LocalHub, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try gets on, so that no other bound is met. The next one goes on with what is there."""
    files = hub.look(MODEL).files
    monkeypatch.setattr(module, "DOWNLOAD_SECONDS", -1000.0)
    local.fail("GET /_cdn", drop="cut")
    with pytest.raises(HubUnavailable, match="cuts it again and again") as error:
        hub.download(MODEL, model, files, tmp_path)
    one_line(error)
    part = tmp_path / ".model.safetensors.part"
    assert 0 < part.stat().st_size < len(WEIGHTS)
    hub.download(MODEL, model, files, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert "206" in local.calls("GET /_cdn")[-1]


def test_the_clients_own_calls_have_time_outs(hub: Hub) -> None:
    assert get_session().timeout == httpx2.Timeout(connection.WRITE_SECONDS, connect=connection.LOOK_SECONDS)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://x", "https://", "file:///etc"])
def test_an_address_that_is_none(endpoint: str) -> None:
    with pytest.raises(BadInput, match="HF_ENDPOINT"):
        Hub(endpoint)


def test_the_environment_decides(local: LocalHub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", local.url + "/")
    monkeypatch.setenv("HF_TOKEN", local.read_token)
    assert Hub().look(MODEL).commit == model


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b'{"id": "org/model"}', b'{"id":"org/model","sha":"1","siblings":[{}]}']
)
def test_answers_that_make_no_sense(hub: Hub, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_get", lambda path, what: httpx2.Response(200, content=answer))
    with pytest.raises(HubUnavailable):
        hub.look(MODEL)


# ---- what is published, read back


def test_no_conversion(hub: Hub, model: str) -> None:
    assert hub.conversion("org/nothing") is None
    assert hub.conversion(MODEL) is None


def test_conversion_is_never_stale(hub: Hub, local: LocalHub, tmp_path: Path, conversion: Conversion) -> None:
    for key in ("first", "second"):
        record = replace(conversion, convert_key=key)
        commit = local.add("org/out", folder(tmp_path / key, {"conversion.json": records.dump(record)}))
        hub.tag("org/out", {"first": "v1", "second": "v2"}[key], commit)
        assert hub.conversion("org/out") == record
    local.fail("conversion.json", times=9, status=500)
    with pytest.raises(HubUnavailable):
        hub.conversion("org/out")


@pytest.mark.parametrize("private", [False, True])
def test_a_publication_without_its_tag_is_not_finished(
    hub: Hub, local: LocalHub, tmp_path: Path, conversion: Conversion, private: bool
) -> None:
    content = {"conversion.json": records.dump(conversion)}
    first = local.add("org/out", folder(tmp_path / "first", content), private=private)
    redo = Redo("the publication of org/out was not finished: its head has no version tag")
    assert hub.conversion("org/out") == redo
    hub.tag("org/out", "nightly", first)
    assert hub.conversion("org/out") == redo
    hub.tag("org/out", "v1", first)
    assert hub.conversion("org/out") == conversion
    local.add("org/out", folder(tmp_path / "second", {**content, "README.md": b"new"}), private=private)
    assert hub.conversion("org/out") == redo
    local.fail("GET .*refs", times=9, status=500)
    assert isinstance(hub.conversions(["org/out"])["org/out"], HubUnavailable)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"schema": 99}', "the published record has schema 99, now it is 1"),
        (b'{"schema": 1}', "the published record is not readable by this version"),
        (b'{"schema": 1', "the published record is not readable by this version"),
        (b"[]", "the published record is not readable by this version"),
        (b"\xff", "the published record is not readable by this version"),
    ],
)
def test_a_record_of_another_version(hub: Hub, local: LocalHub, tmp_path: Path, content: bytes, why: str) -> None:
    local.add("org/odd", folder(tmp_path / "odd", {"conversion.json": content}))
    assert hub.conversion("org/odd") == Redo(why, "toolchain")


def test_the_repos_of_an_organisation_page_by_page(
    hub: Hub, local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hft2ane.localhub.metadata.PAGE", 2)
    card = b"---\ntags: [ane, coreml]\n---\n"
    heads = {f"org/m{n}": local.add(f"org/m{n}", folder(tmp_path / str(n), {"README.md": card})) for n in range(5)}
    local.add("else/m", tmp_path / "0")
    found = hub.repos("org")
    assert {name: each.commit for name, each in found.items()} == heads
    assert found["org/m3"].tags == ("ane", "coreml")
    assert len(local.calls(r"GET /api/models\?")) == 3


def test_conversions_gives_errors_as_values(hub: Hub, local: LocalHub, model: str) -> None:
    local.fail("org/down/resolve", times=9, status=500)
    seen = hub.conversions([MODEL, "org/down", "org/nothing"])
    assert isinstance(seen.pop("org/down"), HubUnavailable)
    assert seen == {MODEL: None, "org/nothing": None}


def test_the_address_is_shown_without_its_password() -> None:
    hub = Hub("https://me:secret@hub.example:8443/hf/")
    assert (hub.page, hub.host) == ("https://hub.example:8443/hf", "hub.example:8443")


# ---- downloads


def test_download(hub: Hub, local: LocalHub, model: str, tmp_path: Path) -> None:
    wanted = [file for file in hub.look(MODEL).files if file.path in ("config.json", "model.safetensors")]
    told: list[tuple[str, float]] = []
    hub.download(MODEL, model, wanted, tmp_path / "into", lambda what, share: told.append((what, share)))
    assert here(tmp_path / "into") == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    assert not local.calls("README")
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1.0
    before = len(local.calls(""))
    hub.download(MODEL, model, wanted, tmp_path / "into")
    assert len(local.calls("")) == before


def test_a_damaged_file_is_fetched_again(hub: Hub, model: str, tmp_path: Path) -> None:
    wanted = [file for file in hub.look(MODEL).files if file.path == "config.json"]
    folder(tmp_path / "into", {"config.json": CONFIG.replace(b"bert", b"tree")})
    hub.download(MODEL, model, wanted, tmp_path / "into")
    assert here(tmp_path / "into") == {"config.json": CONFIG}


@pytest.mark.parametrize("drop", ["cut", "mid"])
def test_a_cut_download_goes_on(hub: Hub, local: LocalHub, model: str, tmp_path: Path, drop: Any) -> None:
    hub.waits = ()  # something was gained each time, so no try is used up
    weights = [file for file in hub.look(MODEL).files if file.path == "model.safetensors"]
    local.fail("GET /_cdn/", times=2, drop=drop)
    shares: list[float] = []
    hub.download(MODEL, model, weights, tmp_path / "into", lambda what, share: shares.append(share))
    assert here(tmp_path / "into") == {"model.safetensors": WEIGHTS}
    assert len(local.calls("GET /_cdn/")) == 3
    assert shares == sorted(shares)  # nothing was fetched twice


@pytest.mark.parametrize("left", [WEIGHTS[:1_000_000], b"of another commit", WEIGHTS + b"more", bytes(len(WEIGHTS))])
def test_a_part_from_an_earlier_run(hub: Hub, model: str, tmp_path: Path, left: bytes) -> None:
    weights = [file for file in hub.look(MODEL).files if file.path == "model.safetensors"]
    folder(tmp_path / "into", {".model.safetensors.part": left})
    hub.download(MODEL, model, weights, tmp_path / "into")
    assert here(tmp_path / "into") == {"model.safetensors": WEIGHTS}


def test_a_part_that_was_whole_is_not_fetched_again(hub: Hub, local: LocalHub, model: str, tmp_path: Path) -> None:
    weights = [file for file in hub.look(MODEL).files if file.path == "model.safetensors"]
    folder(tmp_path / "into", {".model.safetensors.part": WEIGHTS})
    hub.download(MODEL, model, weights, tmp_path / "into")
    assert here(tmp_path / "into") == {"model.safetensors": WEIGHTS}
    assert not local.calls("resolve")


@pytest.mark.parametrize("change", [{"oid": "0" * 64}, {"size": 17}, {"size": len(WEIGHTS) + 1}])
def test_what_is_not_as_listed_is_refused(hub: Hub, model: str, tmp_path: Path, change: dict[str, object]) -> None:
    (weights,) = [file for file in hub.look(MODEL).files if file.path == "model.safetensors"]
    with pytest.raises(CorruptFile, match="size and digest"):
        hub.download(MODEL, model, [replace(weights, **change)], tmp_path / "into")  # type: ignore[arg-type]
    assert here(tmp_path / "into") == {}


def test_a_file_that_is_not_there(hub: Hub, model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        hub.download(MODEL, model, [RemoteFile("none.json", 1, "0" * 40, False)], tmp_path / "into")


def test_an_empty_file(hub: Hub, local: LocalHub, tmp_path: Path) -> None:
    commit = local.add(MODEL, folder(tmp_path / "model", {"config.json": CONFIG, "vocab.txt": b""}))
    hub.download(MODEL, commit, [file for file in hub.look(MODEL).files if file.path == "vocab.txt"], tmp_path / "into")
    assert here(tmp_path / "into") == {"vocab.txt": b""}


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../x", "", ".", "a//b", "a\\b", "C:x", "a\nb"])
def test_path_tricks(tmp_path: Path, path: str) -> None:
    with pytest.raises(CorruptFile):
        inside(tmp_path, path)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "away").symlink_to(tmp_path)
    with pytest.raises(CorruptFile, match="symbolic link"):
        inside(tmp_path / "in", "away/x")
    with pytest.raises(CorruptFile, match="symbolic link"):
        inside(tmp_path / "in", "away")


def test_a_full_disk(hub: Hub, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "_go_on", full)
    with pytest.raises(NoSpace, match="is full"):
        hub.download(MODEL, model, hub.look(MODEL).files, tmp_path / "into")


def test_digest_is_gits_or_sha256(tmp_path: Path) -> None:
    path = folder(tmp_path, {"x": b"hello\n"}) / "x"
    assert digest(path, lfs=False) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert digest(path, lfs=True) == hashlib.sha256(b"hello\n").hexdigest()


def test_importing_it_loads_no_client() -> None:
    code = "import sys, hft2ane.hub; assert not {'torch', 'huggingface_hub', 'httpx2'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def conversion() -> Conversion:
    return Conversion(
        source=Source(MODEL, "0" * 40, (), CardFields(license="mit")),
        recipe=Recipe(),
        family="bert",
        task="fill-mask",
        original="BertForMaskedLM",
        license="mit",
        packages=(),
        labels=(),
        problem=None,
        convert_key="c",
        verify_key="v",
        card_key="k",
        protocol="p",
        psnr={"float16": 70.0},
        toolchain={"torch": "2.13.0"},
        hft2ane="0.1.0",
    )


# ---- writing


def test_a_hub_that_is_busy_is_not_asked_without_end(hub: Hub, local: LocalHub, slept: list[float]) -> None:
    hub.waits = (1.0, 2.0)
    says = "Cannot create repo: another conflicting operation is in progress"
    local.fail("repos/create", times=99, status=409, says=says)
    with pytest.raises(HubUnavailable, match=f"cannot create org/new: .* 409 .*{says}"):
        hub.create("org/new")
    assert slept == [1.0, 2.0]
    assert len(local.calls("repos/create")) == 3


def test_create(hub: Hub, local: LocalHub) -> None:
    for _ in range(2):
        hub.create("org/new")
    made = hub.repo("org/new")
    assert made is not None
    assert made.private
    with pytest.raises(ModelNotFound, match="no name of a Hub model"):
        hub.create("../../etc")


def test_so_many_commits_an_hour(hub: Hub, local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, sent = 1000.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module.time, "sleep", sleep)
    hub.commits_an_hour = 4
    head = local.add("org/out", folder(tmp_path / "0", {"x": b"0"}))
    for number in range(1, 11):
        now += 10
        file = folder(tmp_path / str(number), {"x": str(number).encode()}) / "x"
        head = hub.commit("org/out", {"x": file}, (), parent=head, title=f"{number}", about="")
        sent.append(now)
    assert len(local.commits("org/out")) == 11
    assert sent == [1010, 1020, 1030, 1040, 4610, 4620, 4630, 4640, 8210, 8220]
    assert Hub.commits_an_hour == 100


@pytest.mark.filterwarnings("ignore:Use .content=<...>.:DeprecationWarning")
def test_xet_that_is_silent_is_replaced_by_lfs(
    hub: Hub, local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store accepts connections, and says nothing: the client would wait for ever."""
    monkeypatch.setattr(module, "XET_SECONDS", 0.5)
    head = local.add("org/out", folder(tmp_path / "old", {"x": b"0"}))
    with socket.socket() as store:
        store.bind(("127.0.0.1", 0))
        store.listen()
        url = f"http://127.0.0.1:{store.getsockname()[1]}"
        monkeypatch.setattr(transfer, "storage_url", lambda *_: url)
        file = folder(tmp_path, {"model.safetensors": WEIGHTS}) / "model.safetensors"
        started = time.monotonic()
        hub.commit("org/out", {"model.safetensors": file}, (), parent=head, title="new", about="")
    assert 0.5 < time.monotonic() - started < 30
    assert local.calls("xet-write-token.* 200")
    assert local.calls("info/lfs/objects/batch")
    assert local.files("org/out")["model.safetensors"] == WEIGHTS
