"""`python -P -m lockstep train RUN_DIR [--attempt N]`: one rank of one attempt. The launcher starts it once per GPU."""

from train.stop_signal import StopSignal

STOP = StopSignal()  # before anything slow is imported: a notice that comes early must not kill

import argparse  # noqa: E402
import ctypes  # noqa: E402
import faulthandler  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

from store.run.run_dir import RunDir  # noqa: E402
from train.resilience.log import open_log  # noqa: E402

# Ranks read what `submit` has fetched, and their logs hold no progress bars.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


# How the allocator of GPUs is set. Of the names that torch reads the first is known to all its releases.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m lockstep train", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="the run's folder, made by lockstep submit")
    parser.add_argument("--attempt", type=int, help="the attempt's number; the newest when left out")
    args = parser.parse_args()
    run = RunDir(args.run_dir)
    attempt = run.attempt(args.attempt) if args.attempt else run.attempts()[-1]
    rank = int(os.environ.get("RANK", "0"))
    open_log(attempt, rank)
    faulthandler.enable(file=1)  # whoever aborts this process, such as NCCL's watchdog, leaves its stacks in the log
    os.environ.update(QUIET)
    if not os.environ.keys() & set(ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"  # else memory that fell to pieces looks like too little
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # DeepSpeed's calls
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)  # fp32 means fp32
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    try:
        from train.process_group import has_gpu

        os.environ["DS_ACCELERATOR"] = "cuda" if has_gpu() else "cpu"  # else it warns as it looks
        from train.attempt import run_attempt

        return run_attempt(run, attempt, STOP).exit_code
    except BaseException as error:  # noqa: BLE001  (the rank dies of it, and says so first)
        from train.resilience.failure import report_failure

        return report_failure(attempt, rank, error)


def die_with_parent() -> None:
    """Should torch's launcher be killed, nobody would watch this rank, and the run's lock would be free: prctl(2)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    os._exit(main())  # a process group whose peer is gone may hang when Python takes it down
