"""Layers under K adapters."""
