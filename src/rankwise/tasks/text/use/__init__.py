"""Saved adapters in use: evaluate, predict, generate, merge."""
