"""What an attempt died of, in the words of CUDA, NCCL and srun; and whether its node is to blame."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.recovery.cause import classify_error, find_cause
from store.run.records import HeartbeatRecord, StuckRank
from store.run.run_dir import Attempt
from tests.launcher.folders import add_attempt, add_failure, make_run

MORE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace may be incorrect."
)
NCCL = "DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
ABORTED = "[rank3]:[E1126 12:00:00.1 ProcessGroupNCCL.cpp:2093] [PG ID 0 PG GUID 0(default_pg) Rank 3] "
TIMED_OUT = "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, Timeout(ms)=3600000)"


@pytest.mark.parametrize(
    "error",
    [
        f"AcceleratorError: CUDA error: uncorrectable ECC error encountered{MORE}",
        f"AcceleratorError: CUDA error: uncorrectable NVLink error detected during the execution{MORE}",
        f"RuntimeError: CUDA error: hardware stack error{MORE}",
        f"RuntimeError: CUDA error: unknown error{MORE}",
        f"RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable{MORE}",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
        "NumCudaDevices() that might have already set an error? Error 802: system not yet initialized",
        "NVMLError_GpuIsLost: GPU is lost",
        "RuntimeError: NVRM: Xid (PCI:0000:41:00): 79, pid=1234, GPU has fallen off the bus.",
        f"{NCCL}unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9",
        f"{NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9",
    ],
)
def test_words_of_a_gpu_or_a_node_that_failed(error: str) -> None:
    assert classify_error(error) == "device"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (f"AcceleratorError: CUDA error: device-side assert triggered{MORE}", None),
        (f"AcceleratorError: CUDA error: an illegal memory access was encountered{MORE}", None),
        (f"RuntimeError: CUDA error: invalid device ordinal{MORE}", None),
        (f"{NCCL}invalid usage (run with NCCL_WARN for details), NCCL version 2.28.9\nDuplicate GPU detected", None),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory"),
        (f"RuntimeError: CUDA error: out of memory{MORE}", "out of memory"),
        (f"{NCCL}unhandled cuda error, NCCL version 2.28.9\nCuda failure 'out of memory'", "out of memory"),
    ],
)
def test_words_of_a_program_that_failed(error: str, kind: str | None) -> None:
    assert classify_error(error) == kind


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """Of four ranks on two nodes, in step 8."""
    return add_attempt(make_run(tmp_path, "mine", job="7"), on=("node1", "node2"), step=7, ranks=4)


def abort(attempt: Attempt, rank: int, words: str) -> None:
    with open(attempt.log_path(rank), "a") as log:
        log.write(f"{ABORTED}{words}\nFatal Python error: Aborted\n")


def test_a_rank_whose_gpu_is_lost_is_named_with_its_node(attempt: Attempt) -> None:
    ecc = f"CUDA error: uncorrectable ECC error encountered{MORE}"
    add_failure(attempt, 3, "node2", ecc, time.time(), error="AcceleratorError")
    add_failure(attempt, 0, "node1", "remote process exited", time.time() - 1, peer_lost=True)
    cause = find_cause(attempt)
    assert (cause.kind, cause.rank, cause.host, cause.suspects_node) == ("device", 3, "node2", True)
    words = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    assert cause.sentence == f"rank 3 on node2 failed on its GPU in step 8: {words}"


def test_a_rank_that_nccl_aborted_is_told_from_its_log(attempt: Attempt) -> None:
    """It leaves no report. Those that only waited for it are aborted as well, some with reports."""
    words = "Process group watchdog thread terminated with exception: "
    abort(attempt, 0, f"{words}[Rank 0] {TIMED_OUT}")
    abort(attempt, 3, f"{words}CUDA error: unspecified launch failure{MORE}")
    add_failure(attempt, 1, "node2", "NCCL communicator was aborted on rank 1.", time.time(), peer_lost=True)
    attempt.launcher_log_path.write_text("srun: error: node2: task 3: Aborted (core dumped)\n")
    cause = find_cause(attempt)
    assert (cause.kind, cause.rank, cause.host, cause.suspects_node) == ("program", 3, "node2", False)
    assert cause.sentence == "rank 3 on node2 aborted in step 8: CUDA error: unspecified launch failure"
    abort(attempt, 2, f"{words}CUDA error: uncorrectable ECC error encountered{MORE}")
    cause = find_cause(attempt)
    assert (cause.kind, cause.rank, cause.host, cause.suspects_node) == ("device", 2, "node1", True)


def test_where_all_were_only_aborted_for_others_srun_is_believed(attempt: Attempt) -> None:
    for rank in range(4):
        abort(attempt, rank, f"terminated with exception: [Rank {rank}] {TIMED_OUT}")
    assert find_cause(attempt).kind == "unknown"
    attempt.launcher_log_path.write_text("srun: error: node2: task 1: Aborted (core dumped)\n")
    assert find_cause(attempt).sentence == "rank 1 on node2 died in step 8: Aborted (core dumped)"


@pytest.mark.parametrize("answers", [True, False])
def test_a_hang_is_the_nodes_fault_where_the_rank_does_not_answer(attempt: Attempt, answers: bool) -> None:
    found = "no rank made progress for 612 s: rank 3 on node2 …"
    stuck = StuckRank(3, "node2", answers)
    add_failure(attempt, 0, "node1", found, time.time(), error="Stuck", stuck=stuck)
    cause = find_cause(attempt)
    assert (cause.rank, cause.host, cause.sentence) == (3, "node2", found)
    assert cause.kind == ("hung" if answers else "unresponsive")
    assert cause.is_infrastructure == cause.suspects_node == (not answers)
    attempt.stacks_path.mkdir()
    assert find_cause(attempt).sentence == f"{found}; every rank's stacks are in {attempt.stacks_path}"


def test_ranks_that_wait_for_each_other_are_the_programs_fault(attempt: Attempt) -> None:
    found = "no rank made progress for 612 s: all ranks wait for each other: rank 0 in all_reduce; rank 1 in broadcast"
    add_failure(attempt, 0, "node1", found, time.time(), error="Stuck")
    cause = find_cause(attempt)
    assert (cause.kind, cause.rank, cause.host) == ("hung", None, None)
    assert not cause.is_infrastructure
    assert not cause.suspects_node


@pytest.mark.parametrize("doing", ["loading", "encoding images", "verifying captions"])
def test_what_fails_before_the_first_step_is_in_none(attempt: Attempt, doing: str) -> None:
    for rank in range(4):
        beat = HeartbeatRecord.read(attempt.heartbeat_path(rank))
        replace(beat, doing=doing).write(attempt.heartbeat_path(rank))
    add_failure(attempt, 2, "node2", "no more", 1.0)
    assert find_cause(attempt).sentence.startswith(f"rank 2 on node2 failed while {doing}: ")
