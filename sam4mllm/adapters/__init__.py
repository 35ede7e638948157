"""LoRA adapters on disk and on a model.

Modules: an adapter's files (``files``), its papers (``manifest``), versions (``registry``) and where they are kept (``home``), adapters
that are given by name (``loose``), adapters with older layer names (``conversion``), and weights on a model (``factors``, ``lora``,
``segmenter``).
"""
