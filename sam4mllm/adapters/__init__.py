"""LoRA adapters on disk and on a model.

Modules: an adapter's files (``fields``, ``files``), its papers (``manifest``) and how a command follows them (``follow``), versions
(``registry``), their names in former releases (``former``) and where they are kept (``home``), adapters that are given by name (``loose``),
adapters with older layer names (``conversion``), and weights on a model (``factors``, ``lora``, ``segmenter``).
"""
