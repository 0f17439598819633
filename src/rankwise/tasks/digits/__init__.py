"""The digits experiment: data, model, protocols."""
