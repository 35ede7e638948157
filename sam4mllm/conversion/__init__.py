"""Converting checkpoints from the layouts in which they were first published, for ``sam4mllm models convert``.

Modules: a whole folder (``convert``), its configuration (``fields``), its tensors (``tensors``, by the plans in ``qwen_vl_chat`` and
``internvl_chat``), and Qwen-VL-Chat's tokenizer (``qwen_tokenizer``).
"""
