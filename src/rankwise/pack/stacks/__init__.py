"""All numbers of a pack in a few vectors, adapters of one structure stacked."""
