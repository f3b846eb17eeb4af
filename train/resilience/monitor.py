"""The thread beside a rank's main thread: it writes heartbeats, listens to people and to the clock, and keeps watch."""

import faulthandler
import itertools
import threading
from collections.abc import Callable

from store.run.liveness import choose_heartbeat_period
from train.context import RankContext
from train.resilience.control import ControlPoller
from train.resilience.heartbeat import Heartbeat
from train.resilience.watchdog import Watchdog

PERIOD = 1.0  # seconds between two looks
DEAF = 30.0  # seconds without one until the stacks of all threads go to the log: the main thread lets no other one run
SUCCESSOR_PERIODS = 5  # between two looks for a later attempt: a look lists a folder that all ranks share


class RankMonitor:
    """Works from the moment it is made until `stop`."""

    def __init__(self, context: RankContext):
        self.heartbeat = Heartbeat(context)
        self.watchdog = Watchdog(context, self.heartbeat)
        self.heartbeat_periods = round(choose_heartbeat_period(context.world.size) / PERIOD)
        self.control = ControlPoller(context) if context.world.is_main_process else None
        self.only_heartbeats = self.warned = False
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self.thread.start()

    def keep_only_heartbeats(self) -> None:
        """The steps are over: what follows, an export, may take its time, and a notice changes nothing any more."""
        self.only_heartbeats = True

    def stop(self) -> None:
        """Returns once nothing more is written."""
        self.stopped.set()
        self.thread.join()

    def _run(self) -> None:
        for period in itertools.count():
            faulthandler.dump_traceback_later(DEAF, file=1)  # by a thread that needs no interpreter; at each call anew
            for duty in self._duties(period):
                try:
                    duty()
                except OSError as error:  # a full disk must not end the watch
                    if not self.warned:
                        print(f"ALARM: a heartbeat or the requests in control/ are lost: {error}", flush=True)
                    self.warned = True
            if self.stopped.wait(PERIOD):
                faulthandler.cancel_dump_traceback_later()
                return

    def _write_heartbeat(self) -> None:
        self.heartbeat.write(None if self.only_heartbeats else self.watchdog.find_due())

    def _duties(self, period: int) -> list[Callable[[], None]]:
        """What is to be done in this period; if one fails, the others are done all the same."""
        duties = [self._write_heartbeat] if period % self.heartbeat_periods == 0 else []
        if self.only_heartbeats:
            return duties
        duties.append(self.watchdog.exit_if_stuck)
        if self.control is not None:
            duties += [self.control.check_time_limit, self.control.poll_requests]
        if period % SUCCESSOR_PERIODS == 0:
            duties.append(self.watchdog.exit_if_superseded)
        return duties
