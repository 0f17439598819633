"""Which weights are adapted: modules, the language of patterns, ties, readers, rows of tokens."""
