"""A file's record of its base, and obstacles to saving."""
