"""DeepSpeed's CPU extension: compiled once per node, before a rank joins the others.

torch guards its build folder with a file named `lock`, which a killed build leaves behind for everybody after it to
wait on. Our own flock goes with its holder, and whoever holds it knows that any `lock` file is stale.
"""

import fcntl
import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from train.private_folder import make_private_folder, private_folder


def extension_folder() -> Path:
    """Where the extension of this user, these versions and this installation lies, whether or not it is there yet.

    The compiler's command holds the installation's paths, so that
    two installations in one folder would each build anew.
    """
    versions = f"torch{version('torch')}-deepspeed{version('deepspeed')}-python{platform.python_version()}"
    installation = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return private_folder() / f"extensions-{versions}-{installation}"


def make_extension_folder() -> Path:
    """Make the folder and answer it. Raises LockstepError where others may write in it, or could before."""
    make_private_folder()
    folder = extension_folder()
    folder.mkdir(exist_ok=True)
    return folder


def build_extension() -> None:
    """Compile the extension, about 40 s the first time, or load what is compiled. Raises LockstepError where the folder
    for it is not this user's alone."""
    folder = make_extension_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    compiled = folder / builder.name / f"{builder.name}.so"
    with open(folder / ".flock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not compiled.exists():
            print("compiling DeepSpeed's CPU extension, once per machine, about 40 s", flush=True)
        (compiled.parent / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)  # DeepSpeed then finds it loaded, and does not take torch's lock itself
