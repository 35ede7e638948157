"""Evaluation: the figures that measure answers, their confidence intervals, and comparisons of settings."""
