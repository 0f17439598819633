"""Images with labels: `rankwise sweep --task images`."""
