"""Reading what the client's Xet library wrote into the folder that it was given as its storage (`local://FOLDER`).

A storage holds shards, which say of which chunks the files are made, and xorbs, compressed packs of chunks. Shards also
hold the files' SHA-256, by which commits name them. The content is put together by hf_xet itself.
"""

import os
import shutil
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from hft2ane.localhub.messages import read_blocks
from hft2ane.localhub.store import Store

RECORD = 48
END = b"\xff" * 32
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30


def new_storage(store: Store, key: str) -> Path:
    """A folder for one write token: the library locks its storage's index, so two clients cannot share one."""
    return store.root / "xet" / key.replace("/", "--") / uuid.uuid4().hex


def collect(store: Store, key: str, wanted: set[str]) -> None:
    """Move the wanted files, named by SHA-256, from the repo's Xet storages to the blobs, as far as they are there."""
    for storage in sorted((store.root / "xet" / key.replace("/", "--")).glob("*")):
        found: dict[str, tuple[str, int]] = {}
        for shard in storage.glob("xet/xorbs/shards/*.mdb"):
            found |= {sha256: (xet, size) for sha256, xet, size in files_in(shard.read_bytes()) if sha256 in wanted}
        if found:
            extract(store, storage, found)
            wanted = wanted - found.keys()


def extract(store: Store, storage: Path, files: dict[str, tuple[str, int]]) -> None:
    """Put files, SHA-256 -> (Xet hash, size), together from a storage whose writer may still hold its lock."""
    import hf_xet  # here, because some processors have no such package, and then their clients do not use Xet either

    work = store.tmp / uuid.uuid4().hex
    try:
        shutil.copytree(storage / "xet" / "xorbs", work / "xet" / "xorbs", copy_function=link_or_copy)
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{work}") as group:
            for sha256, (xet, size) in files.items():
                group.start_download_file(hf_xet.XetFileInfo(xet, size), str(work / sha256))
        for sha256 in files:
            with (work / sha256).open("rb") as file:
                store.keep_large(read_blocks(file), sha256)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def link_or_copy(source: str, target: str) -> None:
    """Packs never change once written; the index does."""
    if source.endswith(".redb"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def files_in(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """(SHA-256, Xet hash, size) of every file in a shard.

    A shard is a header, then for each file several 48-byte records: the first has the file's hash, flags, and how many
    segments follow; then the segments, a verification record for each if so flagged, and one with the SHA-256 likewise.
    """
    at = RECORD
    while shard[at : at + 32] != END:
        xet = hex_hash(shard[at : at + 32])
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        sizes = [struct.unpack_from("<I", shard, at + RECORD * (1 + index) + 36)[0] for index in range(segments)]
        at += RECORD * (1 + segments * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_METADATA:
            yield hex_hash(shard[at : at + 32]), xet, sum(sizes)
            at += RECORD


def hex_hash(data: bytes) -> str:
    """Hashes are kept as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", data))
