"""Only licences that are known to allow passing on a converted copy get through."""

import re
from dataclasses import replace

import pytest

from hft2ane import licenses
from hft2ane.errors import LicenseError
from hft2ane.records.source import RemoteFile


@pytest.mark.parametrize("license", ["apache-2.0", "mit", "bsd-3-clause", "cc-by-sa-4.0", "openrail++", "gpl-3.0"])
def test_redistributable(license: str) -> None:
    assert licenses.check(license, None) == license
    assert licenses.check(license, license) == license


def test_answers_in_the_hubs_spelling() -> None:
    assert licenses.check(" Apache-2.0 ", "apache-2.0") == "apache-2.0"


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (None, None, "names no licence"),
        (None, "mit", "names no licence"),
        ("", None, "names no licence"),
        ("unknown", None, "names no licence"),
        ("unknown", "unknown", "names no licence"),
        ("mit", "apache-2.0", "'mit', the manifest expects 'apache-2.0'"),
        ("cc-by-nc-4.0", "apache-2.0", "the manifest expects 'apache-2.0'"),
        ("cc-by-nc-4.0", None, "non-commercial use only"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", "non-commercial use only"),
        ("fair-noncommercial-research-license", None, "non-commercial use only"),
        ("cc-by-nd-4.0", None, "no changed copies"),
        ("cc-by-nc-nd-4.0", None, "no changed copies"),
        ("intel-research", None, "research only"),
        ("other", None, "the author's own"),
        ("other", "other", "the author's own"),
        ("llama3.1", None, "not known to allow"),
        ("gemma", None, "not known to allow"),
        ("cc", None, "not known to allow"),
        ("apache 2", None, "not known to allow"),
    ],
)
def test_refused(found: str | None, expected: str | None, words: str) -> None:
    with pytest.raises(LicenseError, match="licence") as caught:
        licenses.check(found, expected)
    assert words in str(caught.value)


def test_nothing_on_the_list_limits_who_or_what_for() -> None:
    bad = {"nc", "nd", "noncommercial", "research", "other", "unknown"}
    assert not [license for license in licenses.REDISTRIBUTABLE if bad & set(license.split("-"))]
    assert all(license == license.lower() for license in licenses.REDISTRIBUTABLE)


REVIEW = licenses.Review("A. Reader", "2026-05-01", "c" * 40, "gemma", {"LICENSE": "1" * 40, "NOTICE": "2" * 40})
READ = (RemoteFile("LICENSE", 1, "1" * 40, False), RemoteFile("NOTICE", 1, "2" * 40, False))


@pytest.fixture
def reviewed(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = replace(REVIEW, license="cc-by-nc-4.0")
    monkeypatch.setattr(licenses, "REVIEWED", {"up/gemma": REVIEW, "up/denied": denied})


@pytest.mark.usefixtures("reviewed")
def test_a_review_lets_its_model_through_as_it_was_read() -> None:
    assert licenses.check("gemma", "gemma", "up/gemma", READ) == "gemma"
    for id, license, files, words in (
        ("up/other", "gemma", READ, "not known to allow"),
        (
            "up/gemma",
            "llama3",
            READ,
            "reviewed by A. Reader on 2026-05-01 at cccccccccccc, and has changed",
        ),
        ("up/gemma", "gemma", READ[:1], "has changed since: read it again"),
        ("up/gemma", "gemma", (replace(READ[0], oid="3" * 40), READ[1]), "has changed since"),
    ):
        with pytest.raises(LicenseError, match=words):
            licenses.check(license, None, id, files)


@pytest.mark.usefixtures("reviewed")
@pytest.mark.parametrize("license", ["cc-by-nc-4.0", "cc-by-nd-4.0", "intel-research", "unknown", None])
def test_no_review_overrides_what_is_forbidden(license: str | None) -> None:
    with pytest.raises(LicenseError) as caught:
        licenses.check(license, None, "up/denied", READ)
    assert "review" not in str(caught.value)


def test_reviews_say_who_read_what() -> None:
    for review in (REVIEW, *licenses.REVIEWED.values()):
        assert review.reviewer
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", review.date)
        assert re.fullmatch("[0-9a-f]{40}", review.commit)
        assert review.read
        assert review.license not in licenses.REDISTRIBUTABLE
