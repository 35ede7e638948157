"""Serving: from a task to its prediction, by one version of the models."""
