"""PEFT's format: settings, names of modules and keys of tensors, both ways."""
