"""The subspaces of trained adapters, as sections 7.2 and 7.3 of the LoRA paper show them."""
