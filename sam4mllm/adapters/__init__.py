"""Everything of an adapter: its files, its versions, and its weights on a model."""
