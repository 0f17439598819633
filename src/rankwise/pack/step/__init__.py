"""One optimiser step of every adapter: optimisers, clipping, loss scales."""
