"""Language models: loading, heads, calls, the base's dropout."""
