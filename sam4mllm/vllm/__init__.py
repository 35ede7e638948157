"""A vLLM server as the MLLM: the weights are there, the conversation is ours."""
