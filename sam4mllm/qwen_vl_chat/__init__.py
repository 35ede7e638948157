"""Qwen-VL-Chat, the paper's 7B backbone (section 4.1), as a model of transformers.

Modules: its configuration (``config``), the image encoder (``vision``) and the whole model (``model``). :mod:`sam4mllm.conversion` converts
the published folder to one that loads with these classes.
"""
