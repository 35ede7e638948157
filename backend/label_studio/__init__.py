"""Label Studio's words and API; no model is loaded here."""
