"""Results in Python: data frames, and HTML for a notebook."""
