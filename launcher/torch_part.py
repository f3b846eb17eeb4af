"""What needs torch, started as a process of its own: this package imports none of it."""

import os
import subprocess
import sys

# What the libraries say by themselves while they are imported and load.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def run_torch_part(module: str, *arguments: object, offline: bool = False) -> int:
    """`python -P -m lockstep MODULE ARGUMENT…` to its end, and its exit code: what is wrong it prints itself.

    `offline`: it asks no hub.
    """
    command = [sys.executable, "-P", "-m", "lockstep", module, *map(str, arguments)]
    environment = os.environ | _QUIET | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    return subprocess.run(command, env=environment, check=False).returncode
