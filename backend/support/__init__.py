"""Plain helpers; nothing here knows Label Studio."""
