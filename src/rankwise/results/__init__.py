"""`results.json` as types: the one definition of what the file holds."""

from rankwise.results.content import FORMAT, Results
from rankwise.results.kinds import Method, Status, ToleranceState, Verdict
from rankwise.results.outcomes import AnswerResult, ConfigurationResult, RunResult
from rankwise.results.reading import parsed, printable_results, read_results
from rankwise.results.record import plain

__all__ = [
    "FORMAT",
    "AnswerResult",
    "ConfigurationResult",
    "Method",
    "Results",
    "RunResult",
    "Status",
    "ToleranceState",
    "Verdict",
    "parsed",
    "plain",
    "printable_results",
    "read_results",
]
