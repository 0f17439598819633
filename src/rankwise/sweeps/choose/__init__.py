"""Decisions as pure functions of the results so far: nothing here trains, reads or writes."""
