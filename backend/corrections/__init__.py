"""The durable log, and what reviewers decided as it tells."""
