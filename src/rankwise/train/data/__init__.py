"""Data on their way to a model: tensors, cuts, loaders, order and size of batches."""
