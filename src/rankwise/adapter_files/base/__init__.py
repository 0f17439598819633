"""What a file records of the base, and what stands against saving."""
