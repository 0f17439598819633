"""Runs `rankwise` with an environment: for processes that the suite starts."""

import os

from killed_run import run


def rankwise_at(environment: dict[str, str], *arguments: str) -> int:
    """Run a command; returns its exit code."""
    os.environ.update(environment)
    return run("none", 0, *arguments)
