"""The models of `model_zoo.py`, and what is checked on each."""
