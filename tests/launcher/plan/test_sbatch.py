"""The text that sbatch gets, byte for byte, for sites that ask for GPUs and containers in different ways.

A change of submitit's or of ours shows here; `python -m tests.launcher.plan.test_sbatch` writes the texts anew.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.shell import lockstep

FOLDER = Path(__file__).with_name("sbatch")
CONFIG = {
    "name": "dragons",
    "model": "/shared/models/sd",
    "data": {"images": "/shared/images"},
    "batch": 256,
    "runs": "/shared/our runs",
}
APPTAINER = {"kind": "apptainer", "image": "/shared/it's ours.sif", "mounts": ["/scratch", "/shared"]}
PYXIS = {"kind": "pyxis", "image": "/shared/lockstep.sqsh", "mounts": ["/scratch", "/shared"]}
# name: the site profile, and what the run's `cluster` says
CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "defaults": ({}, {}),
    "gres-apptainer": (
        {
            "partition": "gpu",
            "account": "ab1234",
            "qos": "normal",
            "constraint": "a100|h100",
            "memory_per_node": "200G",
            "gpus": "gres",
            "setup": ["module load cuda", 'export HF_HOME="/scratch/$USER"'],
            "container": APPTAINER,
            "interface": "ib0",
        },
        {"nodes": "2-8", "gpus_per_node": 4, "time": "12:00:00"},
    ),
    "gpus-per-node-pyxis": (
        {"cpus_per_rank": 16, "max_time": "1-00:00:00", "container": PYXIS},
        {"nodes": 4, "gpus_per_node": 8},
    ),
    "no-gpus": ({"gpus": "none", "cpus_per_rank": 2}, {"nodes": 2, "gpus_per_node": 2}),
}


def text(name: str, folder: Path) -> str:
    """What `lockstep plan --sbatch` prints; PYTHON is this machine's."""
    profile, cluster = CASES[name]
    (folder / "lockstep").mkdir()
    (folder / "lockstep" / "there.yaml").write_text(json.dumps(profile))
    config = folder / "config.yaml"
    config.write_text(json.dumps(CONFIG | {"cluster": {"site": "there", **cluster}}))
    done = lockstep("plan", config, "--sbatch", XDG_CONFIG_HOME=str(folder), PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    python = re.escape(f"{sys.prefix}/bin/python") + r"[0-9.]*"  # pip writes into `lockstep` by which name it ran
    return re.sub(python, "PYTHON", done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_as_it_was(name: str, tmp_path: Path) -> None:
    assert text(name, tmp_path) == (FOLDER / f"{name}.sbatch").read_text()


def test_no_case_is_left_behind() -> None:
    assert sorted(os.listdir(FOLDER)) == sorted(f"{name}.sbatch" for name in CASES)


if __name__ == "__main__":
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            (FOLDER / f"{case}.sbatch").write_text(text(case, Path(temporary)))
