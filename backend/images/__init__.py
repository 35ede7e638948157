"""Pictures of tasks: fetched, decoded and kept within limits."""
