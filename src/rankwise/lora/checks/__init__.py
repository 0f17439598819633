"""What a model is checked for: what it reads, its first forward and steps, lost layers, other threads."""
