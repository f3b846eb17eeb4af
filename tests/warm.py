"""A process that has torch, DeepSpeed, diffusers and transformers loaded, and forks ranks on request.

A rank's imports cost some 10 s of CPU; forked from here it starts at once and is otherwise the same: a process of its
own, with its own environment, joined to the others over gloo. Reads one JSON request per line from stdin, answers with
the ranks' pids, then with their exit codes in the order in which they end.
"""

import json
import os
import runpy
import sys
import traceback
import warnings


def preload() -> None:
    warnings.filterwarnings("ignore")
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (DeepSpeed imports it late, for 3 s)

    import train.attempt
    import train.models.lora  # noqa: F401  (everything a rank needs)


def become_rank(rank: int, request: dict) -> None:
    """In the forked child: never returns."""
    code = 1
    try:
        log = os.open(f"{request['log']}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        sys.argv = [request["program"], *request["arguments"]]
        runpy.run_path(request["program"], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  (said here, as the interpreter would)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    preload()
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps("ready"), file=say)
    for line in sys.stdin:
        request = json.loads(line)
        pids = {}
        for rank in range(request["count"]):
            pid = os.fork()
            if not pid:
                become_rank(rank, request)
            pids[pid] = rank
        print(json.dumps(list(pids)), file=say)
        for _ in range(request["count"]):
            pid, status = os.wait()
            print(json.dumps([pids[pid], os.waitstatus_to_exitcode(status)]), file=say)


if __name__ == "__main__":
    main()
