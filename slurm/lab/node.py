"""`python -P -m lockstep slurm.lab.node FOLDER K`: pid 1 of node K, in namespaces of its own.

It runs slurmd and reaps orphans.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from slurm.lab.lab_dir import LabDir
from slurm.lab.settings import NETWORK


def main(lab: LabDir, number: int) -> int:
    """Lives for as long as the node has power; ends only where slurmd cannot start, so that this is noticed."""
    name = f"node{number}"
    sys.stdin.readline()  # the supervisor has plugged the cable in
    for command in (
        f"hostname {name}",
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        "ip link set lo up",
        f"ip address add {NETWORK}.{number}/24 dev eth0",
        "ip link set eth0 up",  # no route beyond the cluster: what is not there is known at once
    ):
        subprocess.run(command.split(), check=True)
    (lab.spool / name).mkdir(exist_ok=True)
    slurmd = subprocess.Popen(["slurmd", "-D", "-N", name], stdin=subprocess.DEVNULL)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:  # slurmd was killed, and this node runs nothing any more
            time.sleep(1)
            continue
        if pid == slurmd.pid and (code := os.waitstatus_to_exitcode(status)) > 0:
            return code


if __name__ == "__main__":
    sys.exit(main(LabDir(Path(sys.argv[1])), int(sys.argv[2])))
