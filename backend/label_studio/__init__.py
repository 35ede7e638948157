"""Label Studio's data formats and API; no model is loaded here."""
