"""Everything of an adapter: its files (``files``), its versions (``registry``), where they are kept (``home``), adapters given by name
(``loose``), and its weights on a model (``factors``, ``lora``).
"""
