"""Examples as tokens and batches."""
