"""Trained adapters changed after training: resized, extracted from a fine-tuned model, combined, looked into."""
