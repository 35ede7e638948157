"""The Label Studio backend: the server, what learns from corrections, and the commands."""
