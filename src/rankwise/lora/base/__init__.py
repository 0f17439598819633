"""The base under the adapters: its state dict, buffers, running statistics, and a snapshot of them."""
