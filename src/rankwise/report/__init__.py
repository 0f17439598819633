"""Table, figures and page of a sweep. Reads `results.json` and nothing else, so it can be run again at any time."""

from rankwise.report.schema import Results, read_results, validate
from rankwise.report.table import terminal_table
from rankwise.report.words import answer_words
from rankwise.report.write import write_report

__all__ = ["Results", "answer_words", "read_results", "terminal_table", "validate", "write_report"]
