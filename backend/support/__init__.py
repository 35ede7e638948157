"""Helpers that the other packages share; none of them calls Label Studio."""
