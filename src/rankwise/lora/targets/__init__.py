"""Find the weights to adapt: modules, the language of patterns, ties, readers, rows of tokens."""
