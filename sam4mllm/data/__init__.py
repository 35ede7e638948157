"""Datasets: the project's own format, and readers that convert public data sets to it."""
