"""Training of LoRA adapters: from a dataset to the folder of an adapter."""
