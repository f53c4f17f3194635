"""Waves: what changes in our code, tools or protocol would remake every release at once; it is done for some a night.

When too many of a wave's models fail, its others wait: what broke them would break those too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hft2ane.records.job import Cause, Job

LIMIT = 20  # models a night
LEAST = 5  # tries, before a share of them says anything
FAILING = 0.2  # the largest share that may fail

CAUSES: tuple[Cause, ...] = ("verify", "toolchain")


@dataclass(frozen=True)
class Wave:
    """How it goes, over all nights: how many models are done, and the repos of those that fail."""

    done: int = 0
    failing: frozenset[str] = frozenset()

    def after(self, repo: str, failed: bool) -> "Wave":
        if failed:
            return replace(self, failing=self.failing | {repo})
        return Wave(self.done + 1, self.failing - {repo})

    def takes(self, job: Job) -> bool:
        """Whether the job is tried: what has failed and has its turn again is, and decides how it goes on."""
        return self.stopped is None or not belongs(job) or job.repo in self.failing

    @property
    def stopped(self) -> str | None:
        """Why no more of its models are tried; None: they are."""
        failing, tried = len(self.failing), self.done + len(self.failing)
        if tried < LEAST or failing <= FAILING * tried:
            return None
        return (
            f"{failing} of the {tried} models that this wave has tried fail, more than {FAILING:.0%}: "
            "its others wait until that is mended"
        )


def belongs(job: Job) -> bool:
    """Whether the job is to be done for a reason that many models have at once."""
    return job.cause in CAUSES


def hold(jobs: Sequence[Job], wave: Wave, limit: int) -> list[Job]:
    """`jobs`, with those of the wave held that are beyond `limit`, or all of its new ones when it is stopped.

    Small models come first: what fails, fails soon and at little cost."""
    tonight = [job for job in jobs if belongs(job) and job.to_do]
    waiting = sorted((job for job in tonight if job.repo not in wave.failing), key=order)
    room = 0 if wave.stopped else max(0, limit - (len(tonight) - len(waiting)))
    why = wave.stopped or f"{limit} models a night are done for reasons that many have, and it is not yet its turn"
    late = {job.repo for job in waiting[room:]}
    return [held(job, why) if job.repo in late else job for job in jobs]


def order(job: Job) -> tuple[bool, float, str, str]:
    return job.cause != "verify", job.work, job.id, job.repo


def held(job: Job, why: str) -> Job:
    return replace(job, action="held", why=f"to {job.action} ({job.why}): {why}")
