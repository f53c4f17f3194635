"""Only licences that are known to allow passing on a converted copy get through."""

import pytest

from hft2ane import licenses
from hft2ane.errors import LicenseError


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
