"""Trainers of transformers and TRL as they are, swept."""
