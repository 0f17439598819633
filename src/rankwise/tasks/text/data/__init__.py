"""Examples: their forms, labels, splits."""
