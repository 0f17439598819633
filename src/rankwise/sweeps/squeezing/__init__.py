"""Trained adapters of a sweep cut to smaller ranks: which, how they score, and which adapter to ship."""
