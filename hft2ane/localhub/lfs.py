"""Which files git keeps itself and which go to large file storage, as the real Hub decides it."""

import hashlib
from fnmatch import fnmatchcase

REGULAR_LIMIT = 10 * 1024 * 1024

# What the Hub puts into every new repo.
PATTERNS = """
    *.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
    *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm
    *.xz *.zip *.zst *tfevents*
"""
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in PATTERNS.split()).encode()


def is_large(path: str, size: int, sample: bytes, attributes: bytes) -> bool:
    """Whether `path` goes to large file storage. `sample`: its first bytes; `attributes`: the repo's .gitattributes."""
    if size == 0:
        return False
    return by_name(path, attributes) or size > REGULAR_LIMIT or b"\0" in sample


def by_name(path: str, attributes: bytes) -> bool:
    """As in git, the last matching line decides; a pattern without a slash is for the file's name only."""
    large = False
    for line in attributes.decode(errors="replace").splitlines():
        pattern, *settings = line.split() or ["#"]
        pattern = pattern.replace("**/", "")
        name = path if "/" in pattern else path.rpartition("/")[2]
        if not fnmatchcase(name, pattern.lstrip("/")):
            continue
        if "filter=lfs" in settings:
            large = True
        elif "-filter" in settings or "!filter" in settings:
            large = False
    return large


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(data: bytes) -> str:
    """The id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
