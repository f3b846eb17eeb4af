"""Where our packages go: in a wheel into a folder of their own, where no other wheel's `configs` meets ours and where
lockstep.py finds them. An editable install puts the clone on the path as it is. All else is in pyproject.toml."""

import sys

from setuptools import find_packages, setup

FOLDER = "lockstep_packages"
NAMES = ("configs", "store", "slurm", "launcher", "train")

packages = find_packages(include=[*NAMES, *(f"{name}.*" for name in NAMES)])
if "editable_wheel" in sys.argv:  # setuptools' command for `pip install --editable`
    setup(packages=packages, package_dir={"": "."})
else:
    places = {f"{FOLDER}.{package}": package.replace(".", "/") for package in packages}
    setup(packages=list(places), package_dir=places)
