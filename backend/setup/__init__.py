"""Whether a set-up is right, and setting it up."""
