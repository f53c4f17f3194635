"""Signatures by the OpenSSF's own library: made, published, verified, and refused when anything is changed."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hft2ane import cli, signature
from hft2ane.errors import BadInput, HubUnavailable, ModelNotFound, SignatureError
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.publish import publish
from tests.test_publish import COMMIT, FILES, README, REPO, on_disk, on_hub, release

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(OpenSSL|model_signing|sigstore|tuf|securesystemslib).*"),
]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public one, as openssl makes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.TraditionalOpenSSL
    private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def client(hub: LocalHub) -> Hub:
    client = Hub(hub.url, hub.token)
    client.waits = (0.0, 0.0)
    return client


@pytest.fixture
def job(tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFT2ANE_SIGNING_KEY", str(keys[0]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return release(tmp_path / "job")


def test_a_release_is_signed_once(hub: LocalHub, client: Hub, job: Path, keys: tuple[Path, Path]) -> None:
    first = publish(job, client)
    assert on_hub(hub) == on_disk(job)
    assert "SHA256SUMS.sig" in on_hub(hub)
    assert signature.verify_repo(client, REPO, "v1", key=keys[1]) == len(FILES) + 1
    assert signature.verify(job / "release", key=keys[1]) == len(FILES) + 1
    release(job)  # made again: the same sums, and a signature of other bytes
    again = publish(job, client)
    assert (again.commit, again.changed) == (first.commit, False)
    assert len(hub.calls(COMMIT)) == 1


def test_a_signature_goes_with_its_sums(
    hub: LocalHub, client: Hub, job: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(job, client)
    changed = {**FILES, "README.md": README.encode() + b"More.\n"}
    publish(release(job, changed), client)
    assert signature.verify_repo(client, REPO, "main", key=keys[1]) == len(FILES) + 1
    monkeypatch.delenv("HFT2ANE_SIGNING_KEY")
    publish(release(job, changed), client)  # by a publisher without a key: nothing to do, so it stays
    assert "SHA256SUMS.sig" in on_hub(hub)
    publish(release(job), client)
    assert "SHA256SUMS.sig" not in on_hub(hub)  # that of other sums would be a lie
    with pytest.raises(SignatureError, match="there is no SHA256SUMS.sig: this release is not signed"):
        signature.verify_repo(client, REPO, "main", key=keys[1])


def test_what_is_not_what_was_signed(job: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    folder = job / "release"
    signature.sign(folder / "SHA256SUMS", str(keys[0]))
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    stranger = tmp_path / "other.pem"
    stranger.write_bytes(
        other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(SignatureError, match="not signed by that key"):
        signature.verify(folder, key=stranger)
    with pytest.raises(BadInput, match="none.pem"):
        signature.verify(folder, key=tmp_path / "none.pem")
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(SignatureError, match="release: not as the signed SHA256SUMS says: config.json"):
        signature.verify(folder, key=keys[1])
    (folder / "config.json").write_bytes(FILES["config.json"])
    (folder / "extra.txt").touch()
    with pytest.raises(SignatureError, match="extra.txt"):
        signature.verify(folder, key=keys[1])
    (folder / "extra.txt").unlink()
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("a", "b", 1))
    with pytest.raises(SignatureError, match="not signed by that key"):
        signature.verify(folder, key=keys[1])
    sums.write_text(f"{sums.read_text()}and more\n")
    lines = len(sums.read_text().splitlines())
    signature.sign(sums, str(keys[0]))
    with pytest.raises(SignatureError, match=rf"SHA256SUMS is not a list .* line {lines} \('and more'\)"):
        signature.verify(folder, key=keys[1])  # signed, and nonsense
    (folder / "SHA256SUMS.sig").write_bytes(b"{}")
    with pytest.raises(SignatureError, match="not signed by that key"):
        signature.verify(folder, key=keys[1])


def test_a_repo_whose_files_are_others(hub: LocalHub, client: Hub, job: Path, keys: tuple[Path, Path]) -> None:
    publish(job, client)
    (job / "release" / "config.json").write_bytes(b'{"model_type": "evil"}')
    hub.add(REPO, job / "release")
    with pytest.raises(SignatureError, match="org/tiny-ane@main: not as the signed SHA256SUMS says: config.json"):
        signature.verify_repo(client, REPO, "main", key=keys[1])
    assert signature.verify_repo(client, REPO, "v1", key=keys[1])
    with pytest.raises(ModelNotFound):
        signature.verify_repo(client, "org/none", "main", key=keys[1])


def test_the_librarys_own_command_agrees(job: Path, keys: tuple[Path, Path]) -> None:
    """As the card gives it."""
    sums = job / "release" / "SHA256SUMS"
    signature.sign(sums, str(keys[0]))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(sums), "--signature", f"{sums}.sig"]
    command += ["--public_key", str(keys[1])]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    sums.write_text(sums.read_text() + "\n")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_command(
    hub: LocalHub, client: Hub, job: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    publish(job, client)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    for what in (REPO, f"{REPO}@v1", str(job / "release")):
        assert cli.main(["verify-signature", what, "--key", str(keys[1])]) == 0
        assert f"{what}: signed, and all {len(FILES) + 1} files" in capsys.readouterr().out
    assert cli.main(["verify-signature", REPO, "--identity", "me"]) == 2
    (job / "release" / "LICENSE").unlink()
    assert cli.main(["verify-signature", str(job / "release"), "--key", str(keys[1])]) == 1


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN nonsense"])
def test_what_is_no_key(job: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(BadInput, match="HFT2ANE_SIGNING_KEY is no private key"):
        signature.sign(job / "release" / "SHA256SUMS", str(tmp_path / "key.pem"))
    assert not (job / "release" / "SHA256SUMS.sig").exists()


def test_without_the_library(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(BadInput, match=r"pip install 'hft2ane\[sign\]'"):
        signature.sign(job / "release" / "SHA256SUMS", "key.pem")


def test_without_an_identity(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody:
        def use_sigstore_signer(self, *, use_ambient_credentials: bool) -> None:
            assert use_ambient_credentials

        def sign(self, *_: object) -> None:
            raise RuntimeError("no ambient credentials")

    monkeypatch.setattr("model_signing.signing.Config", Nobody)
    with pytest.raises(HubUnavailable, match="cannot be signed with the CI's identity: .*no ambient credentials"):
        signature.sign(job / "release" / "SHA256SUMS", "keyless")
