"""Will this package live on the Neural Engine? Asked of the saved file, anywhere; the rules are in docs/lint.md."""

from hft2ane.mil.lint.report import lint, lint_package
from hft2ane.mil.lint.rules import RULES, Rule, table
from hft2ane.mil.lint.sarif import sarif

__all__ = ["RULES", "Rule", "lint", "lint_package", "sarif", "table"]
