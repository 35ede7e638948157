"""A task's way to its prediction, under one version."""
