"""Model cards, and the servers that take an adapter."""
