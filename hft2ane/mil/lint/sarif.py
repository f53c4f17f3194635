"""A lint as SARIF 2.1.0, the format in which code hosts show findings on pull requests."""

from collections.abc import Mapping
from typing import Any

from hft2ane.mil.lint.rules import RULES, Rule
from hft2ane.records.lint import Finding, Lint, Severity

LEVELS: Mapping[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}


def sarif(lint: Lint) -> dict[str, Any]:
    """The log with one run; a result for each finding, its logical location being function, layer and operation."""
    used = [rule for id, rule in RULES.items() if any(finding.rule == id for finding in lint.findings)]
    index = {rule.id: at for at, rule in enumerate(used)}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "hft2ane lint", "rules": [described(rule) for rule in used]}},
                "results": [result(lint, finding, index[finding.rule]) for finding in lint.findings],
            }
        ],
    }


def described(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.about},
        "help": {"text": f"{rule.fix} Source: {rule.source}."},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def result(lint: Lint, finding: Finding, index: int) -> dict[str, Any]:
    place = ", ".join(finding.functions) + (f"/{finding.layer}" if finding.layer else "")
    logical = [
        {"name": op, "fullyQualifiedName": f"{finding.functions[0]}/{op}", "kind": "function"} for op in finding.ops
    ] or [{"name": each, "fullyQualifiedName": each, "kind": "module"} for each in finding.functions]
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{place}: {finding.message}"},
        "occurrenceCount": finding.count,
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": lint.package}},
                "logicalLocations": logical,
            }
        ],
    }
