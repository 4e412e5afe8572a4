"""Makes a process believe that vLLM is not installed: TRL imports all of it where it is, seven seconds each time."""

import sys

sys.modules["vllm"] = None  # how Python says "do not import"
