"""Checkpoints in the layouts in which they were first published, rewritten as ``sam4mllm models convert`` does: what they are (``originals``),
their tensors (``tensors``, ``qwen_vl_chat``, ``internvl_chat``), a tokenizer (``qwen_tokenizer``), and the whole folder (``convert``).
"""
