"""The configurations of a sweep, from ranks and options to runs."""
