"""The machine: devices, memory, precision, signals."""
