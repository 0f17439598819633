"""Loggers: observers that write the numbers of a sweep where other programs read them, one file each."""
