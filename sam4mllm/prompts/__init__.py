"""The prompts for the model, and the readers of its answers."""
