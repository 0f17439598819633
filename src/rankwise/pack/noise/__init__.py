"""Noise that depends on what it is for, and modules that are given another forward."""
