"""The commands that need a server."""
