"""Drawn scenes, and the demo models with the recipe that made them."""
