"""The run directory: results, checkpoints, adapters."""
