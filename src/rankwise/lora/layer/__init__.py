"""The contents of an adapted layer: named adapters, their calls, application per row, and checkpoints."""
