"""The multi-modal language model, behind the Grounder protocol."""
