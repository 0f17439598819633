"""Checks of a model: weights it reads, its first forward and steps, lost layers, other threads."""
