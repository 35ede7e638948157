"""Datasets: the project's own format, and public sets that become it."""
