"""What is said to the model, and how its answers are read."""
