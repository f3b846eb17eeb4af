"""`enter.py PID COMMAND…`: run a command in the namespaces of a process, as if it had been started there.

Like nsenter, but signals reach the command: nsenter would die of them and leave it behind. Needs only the standard
library, so that it starts in an instant.
"""

import ctypes
import os
import signal
import sys

_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # CLONE_NEW: mount, uts, ipc, pid, net
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl
_PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH),
)


def main(pid: int, command: list[str]) -> int:
    """The command's exit code, as a shell gives it."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.getcwd()
    if libc.setns(os.pidfd_open(pid), _NAMESPACES) != 0:
        print(f"cannot enter the lab: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 126
    os.chdir(folder)  # a new mount namespace starts at its root
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_PASSED_ON})
    child = os.fork()
    if child == 0:
        libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a command would inherit that
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    return _wait(child)


def _wait(child: int) -> int:
    while True:
        received = signal.sigwaitinfo({signal.SIGCHLD, *_PASSED_ON})
        if received.si_signo != signal.SIGCHLD:
            # What a terminal sends (si_code > 0), it sends to its whole group, so the command has it, too.
            if received.si_code <= 0:
                os.kill(child, received.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
