"""The durable log, and what reviewers decided according to it."""
