"""What people read of a night: its plan as rows, its report in Markdown, and one line of it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from markupsafe import Markup

from hft2ane.attempts import EQUAL, State, shown
from hft2ane.card.markdown import code, escape, row
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome, Run

DONE = ("published", "unchanged")
# The order in which a report tells of outcomes, and how it calls each kind.
SECTIONS: Mapping[str, str] = {
    "failed": "Failed",
    "published": "Published",
    "unchanged": "Made again, and the same",
    "blocked": "Blocked: a person has to decide",
    "held": "Held: waits by itself",
    "orphan": "Orphans: published, and wanted by no manifest",
}


def plan_rows(jobs: Sequence[Job]) -> list[dict[str, str]]:
    """The plan as a table: what is to be done first, then what is not, and how many need nothing."""
    told = [job for job in jobs if job.action != "skip"]
    rows = [
        {
            "model": job.id,
            "to": job.action,
            "cause": job.cause or "",
            "TFLOP": f"{job.work:.3g}" if job.work else "",
            "why": job.why,
            "repo": job.repo,
        }
        for job in told
    ]
    if len(told) < len(jobs):
        rows.append(dict.fromkeys(("model", "cause", "TFLOP", "repo"), "") | {
            "to": "skip", "why": f"{len(jobs) - len(told)} models need nothing"})  # fmt: skip
    return rows


def explained(outcomes: Sequence[Outcome], after: State) -> tuple[Outcome, ...]:
    """Failures, and what waits for its next try, with what is remembered of them: signature and time."""
    return tuple(
        replace(outcome, signature=tried.signature or None, next=None if tried.equal >= EQUAL else tried.due)
        if outcome.status in ("failed", "held") and (tried := after.attempts.get(outcome.repo))
        else outcome
        for outcome in outcomes
    )


def headline(run: Run) -> str:
    """`1 of 12 models newly fails: me/gpt · 10 published, 1 held`, and before that why it broke off, if it did."""
    counts = {status: sum(o.status == status for o in run.outcomes) for status in SECTIONS}
    counts["failed"] -= len(set(run.failed) & {o.id for o in run.outcomes if o.status == "failed"})
    parts = [f"{number} {status}" for status, number in counts.items() if number]
    if counts["failed"]:
        parts[0] = f"{counts['failed']} failed as before"
    said = ", ".join(parts) or ("nothing was done" if run.broken else "nothing was to be done")
    if run.failed:
        verb = "fails" if len(run.failed) == 1 else "fail"
        said = f"{len(run.failed)} of {len(run.outcomes)} models newly {verb}: {', '.join(run.failed)} · {said}"
    if run.only:
        said += f", of {', '.join(run.only)} alone"
    return f"broke off: {run.broken} · {said}" if run.broken else said


def missing(runs: Sequence[Run], owner: str, within: float, now: datetime) -> str | None:
    """Why none of these counts as a night of the last `within` hours; None: one does. What broke off has not done what
    a night is for, and what was asked for some models alone says nothing of the others."""
    least = now - timedelta(hours=within)
    late = [run for run in runs if run.ended >= least]
    if any(run.whole for run in late):
        return None
    said = f"no night of {owner} in the last {within:g} hours"
    if broken := next((run for run in late if run.broken), None):
        return f"{said} has come to its end; that of {shown(broken.started)} broke off: {broken.broken}"
    return f"{said}: is its schedule alive?"


def line(outcome: Outcome) -> str:
    """What became of a job: `published as ane/x-ane@v2, 76.4 dB`"""
    if outcome.status not in DONE:
        return f"{outcome.status}: {outcome.error or outcome.why}"
    figure = f", {number(outcome.artefact)} dB" if outcome.artefact is not None else ""
    return f"{outcome.status} as {outcome.repo}@{outcome.tag}{figure}"


def notification(run: Run) -> str:
    """The night in plain text, failures first: signature, log, next try."""
    lines = [run.broken] if run.broken else []
    for outcome in sorted((o for o in run.outcomes if o.status == "failed"), key=lambda o: o.id not in run.failed):
        news = "newly fails" if outcome.id in run.failed else "fails as before"
        lines += [f"{outcome.id} {news}: {outcome.error}", f"  {next_try(outcome)}"]
        lines += [f"  signature: {outcome.signature}"] if outcome.signature else []
        lines += [f"  log: {outcome.log}"] if outcome.log else []
    for outcome in run.outcomes:
        if outcome.id in run.failed and outcome.status != "failed":
            lines.append(f"{outcome.id} is {outcome.status}, newly: {outcome.error or outcome.why}")
    lines += [f"{o.id}: {o.repo}@{o.tag} {o.url or ''}".rstrip() for o in run.outcomes if o.status == "published"]
    lines += [f"warning: {text}" for text in run.warnings]
    return "\n".join(lines) or "Nothing was to be done."


def markdown(run: Run) -> str:
    """The night as a page: first what newly fails, whatever it is called, then failures."""
    minutes = f"{run.seconds / 60:.0f} min" if run.seconds >= 90 else f"{run.seconds:.0f} s"
    lines = [f"# {shown(run.started)}", "", str(escape(headline(run))) + f", in {minutes}.", ""]
    news = {outcome.status for outcome in run.outcomes if outcome.id in run.failed}
    for status in sorted(SECTIONS, key=lambda status: status not in news):
        if found := [outcome for outcome in run.outcomes if outcome.status == status]:
            lines += [f"## {SECTIONS[status]}: {len(found)}", "", *table(status, found, run), ""]
    if run.skipped:
        lines += [f"{run.skipped} models needed nothing.", ""]
    if run.warnings:
        lines += ["## Warnings", "", *(f"- {escape(warning)}" for warning in run.warnings), ""]
    return "\n".join(lines)


def table(status: str, outcomes: Sequence[Outcome], run: Run) -> Iterator[str]:
    if status == "failed":
        yield from head("", "model", "why it was tried", "error", "next try", "where", "log")
        for o in sorted(outcomes, key=lambda o: o.id not in run.failed):
            place = " ".join(filter(None, (o.worker, f"(try {o.tries})" if o.tries > 1 else "")))
            mark = "**new**" if o.id in run.failed else ""
            error = code(o.error or "")
            yield str(
                row((Markup(mark), o.id, o.why, error, next_try(o), place, Markup(link("log", o.log) if o.log else "")))
            )
    elif status in DONE:
        yield from head("model", "why", "rewrite dB", "package dB", "MB", "s", "where", "published as")
        for o in outcomes:
            figures = (number(o.rewrite), number(o.artefact), number(o.size and o.size / 1e6), f"{o.seconds:.0f}")
            yield str(row((o.id, o.why, *figures, o.worker, Markup(link(f"{o.repo}@{o.tag}", o.url)))))
    else:
        yield from head("", "model", "why")
        for o in sorted(outcomes, key=lambda o: o.id not in run.failed):
            yield str(row((Markup("**new**" if o.id in run.failed else ""), o.id, o.error or o.why)))


def head(*columns: str) -> tuple[str, str]:
    return "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)


def next_try(outcome: Outcome) -> str:
    if outcome.next:
        return f"next try from {shown(outcome.next)} on"
    return "no more tries until its entry, our code for it or the original changes"


def link(text: str, address: str | None) -> str:
    """A link to a page, or the text where there is none. To a file of a machine nothing leads: its name."""
    if address is None:
        return str(escape(text))
    return f"[{escape(text)}]({address})" if address.startswith(("http://", "https://")) else str(code(address))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
