"""Where Lockstep starts: the command, and every process that it starts itself, come through this module.

    lockstep …                                    the command
    python -P -m lockstep MODULE ARGUMENT…        a module of ours as a program: train, slurm.job.batch_script, …

`configs`, `store`, `slurm`, `launcher` and `train` are names that other people's folders and wheels have. To import
this module puts a finder before all others, which finds these five where this installation has them and knows no other
name: they are ours, whatever lies on PYTHONPATH, in the working directory or in site-packages, and every other package
is found where it was. `-P` keeps the working directory from standing in for this module itself.
"""

import os
import runpy
import sys
from importlib.machinery import ModuleSpec, PathFinder

PACKAGES = ("configs", "store", "slurm", "launcher", "train")
_HERE = os.path.dirname(os.path.abspath(__file__))
_IN_A_WHEEL = os.path.join(_HERE, "lockstep_packages")  # see setup.py; two wheels may share site-packages/configs
FOLDER = _IN_A_WHEEL if os.path.isdir(_IN_A_WHEEL) else _HERE


class OwnPackages:
    """Finds the five packages in FOLDER; their modules are then found through the packages, as always."""

    @staticmethod
    def find_spec(name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name not in PACKAGES:
            return None
        spec = PathFinder.find_spec(name, [FOLDER])
        if spec is None:  # then nobody else's, either
            raise ModuleNotFoundError(f"{FOLDER} holds no {name}: install Lockstep again", name=name)
        return spec


sys.meta_path.insert(0, OwnPackages)


def main() -> None:
    """The console command `lockstep`."""
    from launcher.cli.main import main as run_command

    run_command()


def run_module(words: list[str]) -> None:
    """Run the module that `words` name first, with the others as its arguments, as `python -m` would.

    `__main__` stays this module: a process that multiprocessing starts afresh, as it does for data loaders since Python
    3.14, imports its parent's `__main__` before it unpickles anything, and so finds our packages as well.
    """
    if not words or words[0].partition(".")[0] not in PACKAGES:
        name = words[0] if words else "no module"
        print(f"{name}: python -m lockstep runs a module of {', '.join(PACKAGES)}", file=sys.stderr)
        print("the command for people is: lockstep COMMAND …", file=sys.stderr)
        sys.exit(2)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__")


if __name__ == "__main__":
    run_module(sys.argv[1:])
