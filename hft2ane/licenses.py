"""Which licences let us pass on a converted copy, by the ids that the Hub uses for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hft2ane.errors import LicenseError
from hft2ane.records.source import RemoteFile

# Each allows anyone to redistribute a changed copy, commercially too, if the licence and its notices go along (we
# publish LICENSE and NOTICE, and name the original); copyleft ones ask for the same licence, which the copy keeps.
# The OpenRAIL family restricts what may be done with a model, not passing it on. Left out, though some name it open:
# families that say nothing exact (cc), and what lets only some people or some uses have the copy (c-uda).
REDISTRIBUTABLE = frozenset(
    {
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "artistic-2.0",
        "bigcode-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigscience-openrail-m",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "bsl-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "creativeml-openrail-m",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "lgpl-lr",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "odbl",
        "odc-by",
        "openrail",
        "openrail++",
        "osl-3.0",
        "pddl",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    }
)


@dataclass(frozen=True)
class Review:
    """A person's word that a model's own licence allows passing on a converted copy.

    `license`: the id on its card then; `commit`: where upstream was; `read`: the licence and notice files that were
    read, as git's blob SHA-1 by path."""

    reviewer: str
    date: str
    commit: str
    license: str
    read: Mapping[str, str]


# By the Hub's id of the model. For terms that no list can judge (other, gemma, llama3 …); what is refused by name for
# its uses or its changes stays refused.
REVIEWED: Mapping[str, Review] = {}


def check(found: str | None, expected: str | None, id: str = "", legal: Sequence[RemoteFile] = ()) -> str:
    """The licence under which the conversion may be published, in the Hub's spelling.

    `found` is what the upstream card says now, `expected` what the manifest says, `legal` the licence files of `id`.
    LicenseError: none, another than expected, or one that does not allow redistribution, and nobody has reviewed it.
    There is no default and no way around it."""
    if not (license := (found or "").strip().lower()) or license == "unknown":
        raise LicenseError(
            "the original's card names no licence, so nobody may publish a copy: "
            "ask its author to add `license:` to the card"
        )
    if expected is not None and license != expected.strip().lower():
        raise LicenseError(
            f"the original's licence is {license!r}, the manifest expects {expected!r}: "
            "read what has changed, then correct `license:` in the manifest, or pause the model"
        )
    if license in REDISTRIBUTABLE:
        return license
    if forbids := _forbids(license):
        raise LicenseError(f"the licence {license!r} {forbids}: choose another original")
    review = REVIEWED.get(id)
    if review is None:
        raise LicenseError(
            f"the licence {license!r} {_why_not(license)}: choose another original, or, when you have read its terms "
            "and they do allow that, add the licence, or the model's review, to hft2ane/licenses.py"
        )
    if review.license != license or dict(review.read) != {file.path: file.oid for file in legal}:
        raise LicenseError(
            f"the licence {license!r} was reviewed by {review.reviewer} on {review.date} at {review.commit[:12]}, and "
            "has changed since: read it again, and renew the review in hft2ane/licenses.py"
        )
    return license


def _forbids(license: str) -> str | None:
    """What a licence's own name says that it does not allow; nothing overrides that."""
    parts = license.split("-")
    if "nd" in parts:
        return "allows no changed copies"
    if "nc" in parts or "noncommercial" in parts:
        return "allows non-commercial use only"
    if "research" in parts:
        return "allows research only"
    return None


def _why_not(license: str) -> str:
    if license == "other":
        return "is the author's own, whose terms no program can judge"
    return "is not known to allow anyone to redistribute a converted copy"
