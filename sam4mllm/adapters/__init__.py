"""Everything of an adapter: its files (``files``), its versions (``registry``), where they are kept (``home``), adapters given by name
(``loose``), its layers' names of today (``conversion``), and its weights on a model (``factors``, ``lora``).
"""
