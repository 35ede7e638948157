"""The server beside Label Studio, and what surrounds it."""
