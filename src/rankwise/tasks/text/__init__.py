"""Language models: examples from files, tokens, batches, losses, metrics, models and model cards."""
