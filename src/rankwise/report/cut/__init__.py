"""Adapters that were cut to smaller ranks, in the report: a table, a line of the figure, what to ship."""
