"""What an adapted layer holds: named adapters, how they are called, applied per row and checkpointed."""
