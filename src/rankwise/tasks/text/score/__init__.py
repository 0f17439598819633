"""Losses, metrics and the figures of predictions."""
