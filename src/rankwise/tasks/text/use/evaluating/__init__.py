"""Figures of a base and its adapters on a file of examples."""
