"""LoRA, from a dataset to an adapter."""
