"""The tag that the code in a release's card is pinned to.

The card step cannot know it, and writes that of a first release, `v1`; `publish` puts in the one that the release gets.
Both see it on these lines alone, which begin as the card's templates begin them and as no value in a card can.
"""

import re

BEGINNINGS = (r"hf download \S+ --revision ", r'model = load\(\S+ revision="', r'    revision="', 'let revision = "')
LINES = re.compile(rf"^({'|'.join(BEGINNINGS)})v([1-9]\d*)(?=[\" ])", re.MULTILINE)


def pin(card: str, number: int) -> str:
    """The card with `v{number}` wherever its code names a tag of its repo."""
    return LINES.sub(rf"\g<1>v{number}", card)


def pinned(card: str) -> int | None:
    """The number of the tag that the code names; None: it names none, as in cards of before there was this."""
    found = LINES.search(card)
    return int(found[2]) if found else None
