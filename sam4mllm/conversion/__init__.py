"""Checkpoints in the layouts of their first publication, rewritten for ``sam4mllm models convert``: a whole folder (``convert``), its
tensors (``tensors``, by the plans in ``qwen_vl_chat`` and ``internvl_chat``), and a tokenizer (``qwen_tokenizer``).
"""
