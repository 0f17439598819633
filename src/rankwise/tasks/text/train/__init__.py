"""Tasks made ready to train."""
