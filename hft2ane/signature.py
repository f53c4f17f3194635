"""The signature over a release's SHA256SUMS, and so over every file of it, in the format of OpenSSF Model Signing.

By a private key on the publishing machine, or, with the word `keyless`, by the identity that a CI gives its job
(Sigstore). The `model-signing` library does both; anybody can verify with it, or with `hft2ane verify-signature`.
"""

import tempfile
from pathlib import Path
from typing import Any

from hft2ane import checksums
from hft2ane.blobs import digest
from hft2ane.checksums import SUMS
from hft2ane.errors import BadInput, HubUnavailable, ModelNotFound, SignatureError
from hft2ane.hub import Hub

SIGNATURE = f"{SUMS}.sig"
KEYLESS = "keyless"
AGAIN = "publish this release again"
UNSIGNED = {SUMS, SIGNATURE, ".gitattributes"}


def sign(sums: Path, key: str) -> None:
    """The signature of `sums` beside it. `key`: a file with an elliptic private key (PEM, no password), or `keyless`.

    BadInput: no such key; HubUnavailable: keyless, and there is no identity, or Sigstore does not answer."""
    signing = _library().signing
    config = signing.Config()
    try:
        if key == KEYLESS:
            config.use_sigstore_signer(use_ambient_credentials=True)
        else:
            config.use_elliptic_key_signer(private_key=Path(key))
        config.sign(sums, sums.with_name(SIGNATURE))
    except Exception as err:
        if key == KEYLESS:  # of many libraries, each with errors of its own
            raise HubUnavailable(f"{sums} cannot be signed with the CI's identity: {_line(err)}; try later") from err
        if isinstance(err, (OSError, ValueError, TypeError)):
            raise BadInput(
                f"HFT2ANE_SIGNING_KEY is no private key to sign with ({_line(err)}): make one by "
                "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"
            ) from err
        raise


def verify(folder: Path, *, key: Path | None = None, identity: str | None = None, issuer: str | None = None) -> int:
    """SHA256SUMS in this folder is signed so, and every file is as it says; how many files. SignatureError.

    By the public key, or by the identity (e.g. a workflow's address) that the issuer vouches for."""
    _verify_sums(folder, key, identity, issuer)
    sums = checksums.read(folder / SUMS, SignatureError, AGAIN)
    here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    _compare(sums, {name: digest(path, lfs=True) for name, path in here.items() if name not in UNSIGNED}, str(folder))
    return len(sums)


def verify_repo(
    hub: Hub, name: str, revision: str, *, key: Path | None, identity: str | None = None, issuer: str | None = None
) -> int:
    """The same of what the Hub lists for a repo; only SHA256SUMS, its signature and small files are downloaded."""
    repo = hub.repo(name, revision)
    if repo is None:
        raise ModelNotFound(f"there is no {name} on {hub.host}, or it is private: check the name")
    with tempfile.TemporaryDirectory(prefix="hft2ane-") as temporary:
        folder = Path(temporary)
        hub.download(repo.id, repo.commit, [file for file in repo.files if file.path in (SUMS, SIGNATURE)], folder)
        _verify_sums(folder, key, identity, issuer)
        sums = checksums.read(folder / SUMS, SignatureError, AGAIN, f"{name}@{revision}: the signed {SUMS}")
    listed = {file.path: hub.sha256(repo, file) for file in repo.files if file.path not in UNSIGNED}
    _compare(sums, listed, f"{name}@{revision}")
    return len(sums)


def _verify_sums(folder: Path, key: Path | None, identity: str | None, issuer: str | None) -> None:
    for name in (SUMS, SIGNATURE):
        if not (folder / name).is_file():
            raise SignatureError(f"there is no {name}: this release is not signed")
    config = _library().verifying.Config()
    try:
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
        config.verify(folder / SUMS, folder / SIGNATURE)
    except FileNotFoundError as err:
        raise BadInput(f"{err.filename}: {err.strerror}") from err
    except Exception as err:  # what the file makes a dozen libraries say means one thing: not by this key
        raise SignatureError(f"{SUMS} is not signed by that key or identity: {_line(err)}") from err


def _compare(sums: dict[str, str], found: dict[str, str], where: str) -> None:
    if differ := sorted(name for name in sums.keys() | found.keys() if sums.get(name) != found.get(name)):
        raise SignatureError(f"{where}: not as the signed {SUMS} says: {', '.join(differ[:5])}")


def _library() -> Any:
    try:
        import model_signing
        import model_signing.signing
        import model_signing.verifying
    except ModuleNotFoundError as err:
        raise BadInput("signatures need more than the light half: pip install 'hft2ane[sign]'") from err
    return model_signing


def _line(err: BaseException) -> str:
    return " ".join(f"{type(err).__name__}: {err}".split())[:200]
