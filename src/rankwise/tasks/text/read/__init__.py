"""Records from files and the hub."""
