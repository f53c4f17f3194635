"""A release of the Hub on this machine: only the files that are needed, in the Hub client's own cache, each checked.

This is the plain client, with its cache, its progress bars and its offline mode, as apps know them; what publishes and
plans has `hub.Hub`. A release lists its own files, with their digests, in SHA256SUMS.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hft2ane import checksums, package
from hft2ane.checksums import SUMS
from hft2ane.errors import (
    AccessDenied,
    CorruptFile,
    HubUnavailable,
    ModelNotFound,
    NoSpace,
    RevisionNotFound,
    SourceError,
)
from hft2ane.runtime.contract import RECORD, Contract, choose, parse

# What is read besides the packages, as far as a release has it: the tokenizer, and what is done before and after.
SMALL = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|config\.json|sentence_\w+_config\.json"
    r"|config_sentence_transformers\.json"
)


@dataclass(frozen=True)
class Release:
    """A folder with (at least) the packages that `contract` names. `commit`: of a repo."""

    folder: Path
    contract: Contract
    commit: str | None


def from_hub(repo: str, revision: str, variant: str | None) -> Release:
    """SourceError, HubUnavailable, BadInput."""
    record = _file(repo, RECORD, revision)
    # The cache has a folder a commit: what comes next is of the same one, whatever is published meanwhile.
    folder, commit = record.parent, record.parent.name
    contract = choose(parse(record.read_bytes(), f"{repo}/{RECORD}"), variant, repo)
    listed = _file(repo, SUMS, commit)
    sums = checksums.read(listed, CorruptFile, "remove it, and load again", f"{repo}: {listed}")
    wanted = sorted(_needed(sums, contract))
    for name in wanted:
        _file(repo, name, commit)
    check(folder, contract, sums, wanted, f"{repo} at {commit[:12]}", "remove it, so that it is downloaded again")
    return Release(folder, contract, commit)


def from_folder(folder: Path, contract: Contract) -> Release:
    """`contract`: of the variant that is wanted. CorruptFile."""
    again, listed = "download or convert it again", folder / SUMS
    sums = checksums.read(listed, CorruptFile, again) if listed.is_file() else {}
    wanted = [name for name in sorted(_needed(sums, contract)) if (folder / name).is_file()]
    check(folder, contract, sums, wanted, str(folder), again)
    return Release(folder, contract, None)


def check(
    folder: Path, contract: Contract, sums: Mapping[str, str], names: Iterable[str], where: str, cure: str
) -> None:
    """CorruptFile: a file has not the digest of SHA256SUMS, or a package not that of the record."""
    for name in {RECORD, *names} & sums.keys():
        path = folder / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sums[name]:
                raise CorruptFile(f"{where}: {path.resolve()} ({name}) has not the digest in {SUMS}: {cure}")
    for each in contract.packages:
        if not (folder / each.file).is_dir():
            raise CorruptFile(f"{where}: {each.file} is not there: {cure}")
        if package.digest(folder / each.file) != each.digest:
            raise CorruptFile(f"{where}: {folder / each.file} has not the digest in {RECORD}: {cure}")


def _needed(sums: Mapping[str, str], contract: Contract) -> Iterator[str]:
    packages = {each.file for each in contract.packages}
    return (name for name in sums if name.partition("/")[0] in packages or SMALL.fullmatch(name))


def _file(repo: str, name: str, revision: str) -> Path:
    """A file of a repo, from the cache or downloaded into it."""
    from huggingface_hub import hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _explained(repo, name, revision):
        return Path(hf_hub_download(repo, name, revision=revision, endpoint=endpoint, library_name="hft2ane"))


@contextmanager
def _explained(repo: str, name: str, revision: str) -> Iterator[None]:
    """The client's failures as ours, each with what to do."""
    import httpx2
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError as err:
        raise ModelNotFound(
            f"{repo!r} is no name of a repo, like org/all-MiniLM-L6-v2-ane, and there is no such folder"
        ) from err
    except errors.GatedRepoError as err:
        raise AccessDenied(f"{repo} is gated: accept its terms on the Hub, with the account of HF_TOKEN") from err
    except errors.RevisionNotFoundError as err:
        raise RevisionNotFound(f"{repo} has no revision {revision!r}: give one of its tags, like v1") from err
    except errors.RepositoryNotFoundError as err:
        raise ModelNotFound(
            f"{repo}: the Hub has no such repo, or it is private and HF_TOKEN may not see it; there is no such folder"
        ) from err
    except errors.RemoteEntryNotFoundError as err:
        raise SourceError(
            f"{repo} has no {name}, so it is no release of hft2ane; hft2ane convert {repo} makes one of an original"
        ) from err
    except errors.LocalEntryNotFoundError as err:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub cannot be reached"
        raise HubUnavailable(
            f"{repo}/{name} at {revision} is not in the cache, and {why}: load it once online"
        ) from err
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as err:
        raise HubUnavailable(f"{repo}/{name} could not be downloaded ({_line(err)}): try again later") from err
    except OSError as err:
        if err.errno != errno.ENOSPC:
            raise
        raise NoSpace(
            f"the disk of the Hub's cache is full, {repo}/{name} is not there: make room, or set HF_HOME"
        ) from err


def _line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
