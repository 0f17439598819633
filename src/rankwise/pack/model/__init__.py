"""A model that runs as a pack: traced, probed, with every layer replaced."""
