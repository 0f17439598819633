"""Plan which runs train together, in which order, and in how much memory."""
