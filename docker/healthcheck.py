"""Exit with 0 if the backend of this container answers and has not failed to load its models, and else with a line that says why."""

import json
import os
import sys
import urllib.request

address = f"http://127.0.0.1:{os.environ.get('SAM4MLLM_PORT', '9090')}/health"
try:
    with urllib.request.urlopen(address, timeout=4) as answer:
        health = json.load(answer)
    state, error = health["state"], health["error"]
except (OSError, ValueError, TypeError, KeyError) as problem:
    sys.exit(f"error: {address}: {problem}")
print(state)
sys.exit(error or 0)
