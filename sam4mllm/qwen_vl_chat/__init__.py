"""Qwen-VL-Chat, the paper's 7B backbone (section 4.1), as a model of transformers: its configuration (``config``), the image encoder
(``vision``) and the whole (``model``). :mod:`sam4mllm.conversion` makes a folder for it from the published one.
"""
