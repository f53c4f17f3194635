"""The card step: a job's folder -> release/, exactly the files that will be published, byte for byte.

The same records give the same bytes. The card inherits from upstream what `CardFields` holds and nothing else, and
everything that upstream wrote is escaped on its way into Markdown.
"""

from hft2ane.card.release import make, refresh, write

__all__ = ["make", "refresh", "write"]
