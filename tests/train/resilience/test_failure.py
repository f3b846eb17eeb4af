"""A rank whose peer died or hangs says that it is a victim; any other rank says what it failed of."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from configs.errors import LockstepError
from store.run.records import read_failures
from store.run.run_dir import Attempt
from tests.ranks import run_ranks
from train.resilience.failure import report_failure

VICTIMS = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:31337",
    "NCCL communicator was aborted on rank 3.",
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:77, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.28.9\nLast error:\nsocketProgress: Connection closed by remote peer",
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE) ran for 600001 "
    "milliseconds before timing out.",
    "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    "recvValue failed on SocketImpl(fd=69, addr=[node1]:46434, remote=[node0]:15001): Connection reset by peer",
]
CAUSES = ["CUDA error: uncorrectable ECC error encountered", "[Errno 88] Socket operation on non-socket"]


@pytest.mark.parametrize("message", [*VICTIMS, *CAUSES])
def test_a_rank_knows_a_victims_words(tmp_path, message):
    report_failure(Attempt(tmp_path / "0001"), 0, RuntimeError(message))
    [found] = read_failures(Attempt(tmp_path / "0001"))
    assert found.peer_lost == (message in VICTIMS)


def test_a_store_that_nobody_answers_is_somebody_elses_fault(tmp_path):
    """In torch's own words of today: a rank waits for rank 0, which is gone before the group is formed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=1))
    with pytest.raises(dist.DistError) as lost:
        store.get("what rank 0 would say")
    report_failure(Attempt(tmp_path / "0001"), 1, lost.value)
    assert read_failures(Attempt(tmp_path / "0001"))[0].peer_lost, str(lost.value)


def test_a_sentence_of_ours_is_told_without_a_traceback(tmp_path):
    report_failure(Attempt(tmp_path / "0001"), 0, LockstepError("the disk is away"))
    report_failure(Attempt(tmp_path / "0001"), 1, ValueError("a bug"))
    ours, bug = read_failures(Attempt(tmp_path / "0001"))
    assert (ours.traceback, ours.exit_code, ours.message) == (None, 1, "the disk is away")
    assert "ValueError: a bug" in str(bug.traceback)


def test_a_report_that_cannot_be_written_keeps_no_rank_from_its_end(tmp_path, capfd):
    """Whoever reports is about to exit, and may be a watchdog whose main thread hangs."""
    attempt = Attempt(tmp_path / "0001")
    attempt.path.mkdir()
    (attempt.path / "failures").write_text("no folder can be made here")
    assert report_failure(attempt, 0, LockstepError("the disk is away")) == 1
    alarm, message = capfd.readouterr().out.splitlines()
    assert alarm.startswith("ALARM: the failure report could not be written: ")
    assert message == "the disk is away"


def test_a_collective_that_timed_out_is_somebody_elses_fault(tmp_path):
    """In torch's own words of today: gloo waits two seconds for a rank that does not come."""
    run_ranks(2, Path(__file__).with_name("hang.py"), tmp_path / "0001")
    [found] = read_failures(Attempt(tmp_path / "0001"))
    assert found.rank == 0
    assert found.peer_lost, found.message
