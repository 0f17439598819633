"""What is tried, from ranks and options to runs."""
