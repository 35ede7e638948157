"""A vLLM server as the MLLM: the server holds the weights and predicts tokens; this package writes the prompts and reads the answers."""
