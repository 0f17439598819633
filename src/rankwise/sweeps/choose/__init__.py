"""Decisions as pure functions of what is known: nothing here trains, reads or writes."""
