"""What of a release may change without breaking an app that uses it."""

from dataclasses import replace

import pytest

from hft2ane import interface, records
from hft2ane.records.package import Function, Package, Tensor
from hft2ane.records.release import Conversion
from tests.test_publish import conversion

IDS, LOGITS = Tensor("input_ids", (1, 64), "int32", "ids"), Tensor("logits", (1, 2), "float16", "scores")
MAIN = Function("main", 64, (IDS,), (LOGITS,))
PACKAGE = Package("float16", "M.mlpackage", "0" * 64, 1, "iOS 16 / macOS 13", (MAIN,), "main")
OLD = replace(conversion(), packages=(PACKAGE,), labels=("no", "yes"))


def package(**changes: object) -> Conversion:
    return replace(OLD, packages=(replace(PACKAGE, **changes),))  # type: ignore[arg-type]


def breaks(new: Conversion) -> list[str]:
    return interface.breaks(interface.of(OLD), interface.of(new))


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        package(digest="1" * 64, size=7, minimum_os="iOS 18 / macOS 15"),
        package(functions=(replace(MAIN, inputs=(replace(IDS, about="said better"),)),)),
        package(functions=(MAIN, replace(MAIN, name="more"))),
        replace(OLD, packages=(replace(PACKAGE, file="Another.mlpackage"), PACKAGE)),
    ],
)
def test_what_breaks_nothing(new: Conversion) -> None:
    assert breaks(new) == []


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (package(file="N.mlpackage"), "M.mlpackage is gone"),
        (package(functions=(replace(MAIN, name="tokens_64"),)), "M.mlpackage has no function main"),
        (package(default_function="other"), "M.mlpackage runs other instead of main when none is named"),
        (
            package(functions=(replace(MAIN, inputs=(replace(IDS, shape=(1, 65)),)),)),
            "main of M.mlpackage has input input_ids int32 1×65 instead of input input_ids int32 1×64",
        ),
        (
            package(functions=(replace(MAIN, outputs=(replace(LOGITS, name="scores"),)),)),
            "main of M.mlpackage has output scores float16 1×2 instead of output logits float16 1×2",
        ),
        (
            package(functions=(replace(MAIN, inputs=(IDS, replace(IDS, name="mask"))),)),
            "main of M.mlpackage has input mask int32 1×64 instead of nothing",
        ),
        (replace(OLD, labels=("yes", "no")), "the labels are others"),
    ],
)
def test_what_breaks(new: Conversion, says: str) -> None:
    assert breaks(new) == [says]


def test_records_of_other_schemas_are_read_as_far_as_they_go() -> None:
    older = records.dump(OLD).replace(b'"schema": 1', b'"schema": 0').replace(b'"major": 1,', b'"unknown": 1,')
    found = interface.read(older)
    assert found == interface.of(OLD)
    for nothing in (b"", b"[]", b"{}", b'{"packages": 3}', b"\xff"):
        assert interface.read(nothing) is None
