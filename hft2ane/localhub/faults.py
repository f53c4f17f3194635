"""Trouble on demand: which of the next requests fail, and how."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Drop = Literal["before", "after", "mid", "cut"]


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path?query` the pattern is found in: see `LocalHub.fail`."""

    pattern: re.Pattern[str]
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    drip: float = 0
    drop: Drop | None = None
    says: str = ""


class Faults:
    """`met`: how many requests have had one."""

    def __init__(self) -> None:
        self.met = 0
        self._planned: list[Fault] = []
        self._lock = threading.Lock()

    def plan(self, fault: Fault) -> None:
        with self._lock:
            self._planned.append(fault)

    def take(self, line: str) -> Fault | None:
        """The fault that this request meets; the first planned one that is due."""
        with self._lock:
            for fault in self._planned:
                if fault.times == 0 or not fault.pattern.search(line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                self.met += 1
                return fault
        return None
