"""The commands of ``sam4mllm``, one module for each command or group of commands."""
