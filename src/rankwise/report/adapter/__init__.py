"""What is shown of one adapter."""
