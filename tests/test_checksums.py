"""SHA256SUMS: written and read again, and everything else refused, with its line."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hft2ane import checksums
from hft2ane.errors import BadInput, PublishError

ONE, TWO = "1" * 64, "2" * 64


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sums = {"b/ä b.txt": ONE, "a": TWO, "A": ONE}
    data = checksums.dump(sums)
    assert data == f"{ONE}  A\n{TWO}  a\n{ONE}  b/ä b.txt\n".encode()
    assert checksums.parse(data) == sums
    (tmp_path / "sums").write_bytes(data)
    assert checksums.read(tmp_path / "sums", BadInput, "") == sums


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="a Mac may have none")
def test_it_is_the_format_of_sha256sum(tmp_path: Path) -> None:
    for name in ("a b", "c"):
        (tmp_path / name).write_text(name)
    data = subprocess.run(["sha256sum", "a b", "c"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert checksums.dump(checksums.parse(data)) == data


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not there, or empty"),
        ("x", r"line 1 \('x'\) is not a SHA-256, two spaces and a path"),
        (f"{ONE}  a\n{TWO} b\n", "line 2 .* is not a SHA-256"),
        (f"{ONE}  a\n\n", r"line 2 \(''\) is not a SHA-256"),
        (f"{ONE} *a\n", "line 1 .* is not a SHA-256"),
        (f"{ONE[1:]}  a\n", "line 1 .* is not a SHA-256"),
        (f"{'A' * 64}  a\n", "line 1 .* is not a SHA-256"),
        (f"{ONE}   a\n", "line 1 .* is not a SHA-256"),
        (f"{ONE}  b\n{TWO}  a\n", "line 2 has 'a' after 'b'"),
        (f"{ONE}  a\n{TWO}  a\n", "line 2 has 'a' after 'a'"),
        (f"{ONE}  a\n{TWO}  b", "is cut off in line 2"),
        *(
            (f"{ONE}  {path}\n", "line 1 names .*, which is no path inside a release")
            for path in (
                "../a",
                "a/../b",
                "/a",
                "a\\b",
                "./a",
                ".",
                "a//b",
                "a/",
                "a\r",
                "a\x1b[2J",
                "a\u2028b",
                "a\ufffd",
            )
        ),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "sums").write_bytes(text.encode())
    with pytest.raises(PublishError, match=says) as caught:
        checksums.read(tmp_path / "sums", PublishError, "make it again")
    assert str(caught.value).startswith(f"{tmp_path / 'sums'} is ")
    assert str(caught.value).endswith(": make it again")
    assert str(caught.value).isprintable()


def test_what_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "sums").write_bytes(f"{ONE}  ".encode() + b"\xff\n")
    with pytest.raises(BadInput, match="the list is .* line 1 names .*, which is no path inside a release"):
        checksums.read(tmp_path / "sums", BadInput, "do it again", "the list")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="sums is not there, or empty: do it again"):
        checksums.read(tmp_path / "sums", BadInput, "do it again")
