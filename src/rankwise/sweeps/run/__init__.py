"""The stages of a sweep and the training of its packs."""
