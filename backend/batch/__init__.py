"""Bulk runs: tasks of a project, or pictures of a folder, in shards that resume where they were stopped."""
