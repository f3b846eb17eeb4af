"""`lockstep tensorboard`: TensorBoard with every picture kept, behind an address that only its owner knows."""

import contextlib
import getpass
import secrets
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from configs.errors import UserError
from store.run.run_dir import RunDir

# TensorBoard keeps 10 pictures and 1,000 points of a tag unless told otherwise; 0 would mean none, not all
KEPT = {"images": 10_000, "scalars": 1_000_000}


def serve_tensorboard(folder: str, port: int) -> None:
    """Serve until interrupted, on loopback only. The random path is the key: TensorBoard itself knows no passwords.

    Raises UserError where `folder` holds no events, or `port` is taken (0: any free one).
    """
    run = RunDir(Path(folder).absolute())
    logs = run.tensorboard_path if run.tensorboard_path.is_dir() else run.path
    if not any(logs.rglob("events.out.tfevents.*")):
        raise UserError(f"{folder}: holds no TensorBoard events yet; name a run's folder, or a folder of runs")
    from tensorboard import program

    board = program.TensorBoard()
    key = secrets.token_urlsafe(12)
    board.configure(logdir=str(logs), host="127.0.0.1", port=port, path_prefix=f"/{key}", samples_per_plugin=KEPT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            address = board.launch()
        except program.TensorBoardPortInUseError:
            raise UserError(f"port {port} is taken; name another with --port, or 0 for any free one") from None
        port_in_use = urlsplit(address).port
        login = f"{getpass.getuser()}@{socket.gethostname()}"
        print(f"TensorBoard: {address}")
        print(f"from your own machine first: ssh -L {port_in_use}:127.0.0.1:{port_in_use} {login}")
        print("Ctrl-C stops it", flush=True)
        threading.Event().wait()
