"""Table, figures and page of a sweep. Reads `results.json` and nothing else, so it can be run again at any time."""

from rankwise.report.table import terminal_notes, terminal_table
from rankwise.report.words import answer_words
from rankwise.report.write import write_report
from rankwise.results import Results, read_results

__all__ = ["Results", "answer_words", "read_results", "terminal_notes", "terminal_table", "write_report"]
