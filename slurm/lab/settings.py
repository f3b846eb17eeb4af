"""What a lab is asked to be, and the configuration files that follow from it."""

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm.lab.lab_dir import LabDir

CONTROLLER = "login"
NETWORK = "10.77.77"
CPUS, GPUS, MEMORY_MB = 8, 4, 16000  # what each node claims to have, whatever the machine has
# slurmd opens none of them: they stand for GPUs because CUDA_VISIBLE_DEVICES is only set for character devices.
_GPU_DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/zero")


@dataclass(frozen=True)
class Settings:
    """What `up` was asked for. Two labs side by side need different ports where they are plain."""

    nodes: int = 4
    accounting: bool = True
    plain: bool = False
    port: int = 16800
    extra: str = ""  # more lines of slurm.conf; of a key given twice the last one holds

    @classmethod
    def read(cls, path: Path) -> "Settings":
        return cls(**json.loads(path.read_text()))

    def to_text(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def controller(self) -> str:
        return socket.gethostname().partition(".")[0] if self.plain else CONTROLLER

    @property
    def controller_address(self) -> str:
        return "127.0.0.1" if self.plain else f"{NETWORK}.254"

    @property
    def database_port(self) -> int:
        return self.port + 1

    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]


def write_configuration(lab: LabDir, settings: Settings) -> None:
    """Every file that the daemons read."""
    lab.slurm_conf.write_text(_slurm_conf(lab, settings))
    (lab.etc / "gres.conf").write_text(_gres_conf())
    (lab.etc / "hosts").write_text(_hosts(settings))
    # No name server can be reached from inside; asking one would cost every unknown name a time-out.
    (lab.etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    for path, text in ((lab.munge_key, os.urandom(128)), (lab.etc / "slurmdbd.conf", _slurmdbd_conf(lab, settings))):
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:  # both insist on 0600
            file.write(text)


def _gres_conf() -> str:
    return "AutoDetect=off\n" + "".join(f"Name=gpu File={device}\n" for device in _GPU_DEVICES[:GPUS])


def _hosts(settings: Settings) -> str:
    lines = ["127.0.0.1 localhost", f"{settings.controller_address} {settings.controller}"]
    lines += [f"{NETWORK}.{number} {name}" for number, name in enumerate(settings.node_names(), 1)]
    return "\n".join(lines) + "\n"


_PARTITIONS = """\
# high goes before main; both preempt low, whose jobs go back to the queue, and spot, whose jobs are cancelled.
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=INFINITE DefaultTime=10
PartitionName=main PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=high PriorityTier=20 PreemptMode=OFF Default=NO
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=spot PriorityTier=1 PreemptMode=CANCEL GraceTime=15
"""


def _slurm_conf(lab: LabDir, settings: Settings) -> str:
    return f"""\
ClusterName=lab
SlurmctldHost={settings.controller}({settings.controller_address})
SlurmctldPort={settings.port}
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
StateSaveLocation={lab.state}
SlurmdSpoolDir={lab.spool}/%n
SlurmctldPidFile={lab.run}/slurmctld.pid
SlurmdPidFile={lab.run}/%n.pid
SlurmctldDebug=verbose
SlurmdDebug=verbose
SlurmctldLogFile={lab.log("slurmctld")}
SlurmdLogFile={lab.log("%n")}
LogTimeFormat=iso8601_ms
MailProg=/bin/true
MpiDefault=none

# A requeued job may not start again before its credential has expired: 120 s by default.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab.munge_socket},cred_expire=5

# No cgroups, so that the lab also runs in containers. A step's end overlooks processes whose parent ended before.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5

# The defaults suit clusters where minutes do not matter: here a dead node is noticed within half a minute.
SlurmdTimeout=10
SlurmctldTimeout=30
MessageTimeout=10
TCPTimeout=2
KillWait=5
BatchStartTimeout=10
MinJobAge=600
JobRequeue=1
# A node that did not answer comes back by itself; one that a person set down stays down.
ReturnToService=1

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{_accounting(lab, settings)}
GresTypes=gpu
SlurmdParameters=config_overrides
{_nodes(settings)}

{_PARTITIONS}
{settings.extra}
"""


def _accounting(lab: LabDir, settings: Settings) -> str:
    if not settings.accounting:
        return "AccountingStorageType=accounting_storage/none"
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={settings.controller_address}
AccountingStoragePort={settings.database_port}
AccountingStorageTRES=gres/gpu
# AuthInfo does not count towards slurmdbd, so the socket is named once more.
AccountingStoragePass={lab.munge_socket}"""


def _nodes(settings: Settings) -> str:
    """Plain nodes share one host name and address, and differ by their ports."""
    count, first = settings.nodes, settings.port + 11
    if settings.plain:
        place = f"NodeHostname={settings.controller} NodeAddr=127.0.0.1 Port=[{first}-{first + count - 1}]"
    else:
        place = f"NodeAddr={NETWORK}.[1-{count}] Port={first}"
    return (
        f"NodeName=node[1-{count}] {place} CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} "
        f"ThreadsPerCore=1 RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN"
    )


def _slurmdbd_conf(lab: LabDir, settings: Settings) -> bytes:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={lab.munge_socket}
DbdHost={settings.controller}
DbdAddr={settings.controller_address}
DbdPort={settings.database_port}
SlurmUser={getpass.getuser()}
PidFile={lab.run}/slurmdbd.pid
DebugLevel=verbose
LogFile={lab.log("slurmdbd")}
StorageType=accounting_storage/mysql
# localhost means the unix socket that MYSQL_UNIX_PORT names
StorageHost=localhost
StorageUser={getpass.getuser()}
StoragePass=unused
StorageLoc=accounting
""".encode()
