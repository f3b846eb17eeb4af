"""Ends an attempt that does not end by itself: its ranks hang, or do not stop when they are asked to, or it has a
successor.

Nothing interrupts a collective: where one rank hangs, the others wait for it. Every rank's heartbeat says until when it
must have come to something else. Once that is past for all of them, and so for those that wait, each rank writes down
what its threads are at, and the attempt ends with the name of the rank that the others wait for.
"""

import faulthandler
import os
import time
from typing import NoReturn

from configs.errors import LockstepError
from store.run.liveness import choose_heartbeat_period
from store.run.records import HeartbeatRecord, StuckRank, read_heartbeat
from train import process_group
from train.context import RankContext
from train.progress import LOADING, WAITING_FOR_OTHERS
from train.resilience import stacks
from train.resilience.failure import Stuck, report_failure
from train.resilience.heartbeat import HOST, Heartbeat

SILENT_PERIODS = 5  # without a heartbeat tell a rank that is stopped or gone from one that waits
SETTLE = 5.0  # seconds for the other ranks to write down what they are at, before any of them ends the attempt
LAST_RESORT = 60  # seconds until this process ends whatever happens, such as a disk that answers no more
ASLEEP = 10.0  # seconds between two looks that tell a process or a machine which was itself stopped meanwhile
_SHOWN = 4  # ranks named in one line


class Superseded(LockstepError):
    """This attempt goes on although the next one has begun."""


class Watchdog:
    """One rank's; it looks at the heartbeats of all."""

    def __init__(self, context: RankContext, heartbeat: Heartbeat):
        self.context, self.heartbeat = context, heartbeat
        self.silence = SILENT_PERIODS * choose_heartbeat_period(context.world.size)
        self.last_look = self.awake_since = time.time()
        self.has_written = False

    @property
    def stop_timeout(self) -> float:
        """Seconds without progress after a notice; what has taken longer before may do so again."""
        return max(self.context.config.checkpoint.notice_seconds / 2, self.context.progress.longest_stop)

    @property
    def hang_timeout(self) -> float | None:
        """Seconds that this rank may be at what it is at; None where nobody can tell. Shorter than a collective waits,
        which would end the attempt without telling for whom, and long enough to tell who fell silent."""
        hang_seconds = self.context.config.hang_seconds
        wait = self.context.progress.find_longest_wait(hang_seconds)
        if wait is None:
            return None
        return max(min(wait, process_group.choose_timeout(hang_seconds).total_seconds() * 0.9), 2 * self.silence)

    def find_due(self) -> float | None:
        """When this rank must have come to something else, in seconds since the epoch."""
        timeout = self.hang_timeout
        return None if timeout is None else self.context.progress.since + timeout

    def exit_if_superseded(self) -> None:
        """An attempt on a node that was cut off from the network may live on beside its successor; it must not write
        into the curves that the two share. Raises OSError where the run's attempts cannot be listed."""
        newest = max((attempt.number for attempt in self.context.run.attempts()), default=0)
        if newest > self.context.attempt.number:
            self.abort(Superseded(f"attempt {newest} of this run has begun"))

    def exit_if_stuck(self) -> None:
        """Where a notice was received, and this rank has made no progress since for longer than it may take; or where
        no rank makes progress. Where another rank is about to end the attempt, this one only writes its stacks."""
        problem = self._find_late_stop() or self._find_hang()
        if problem is not None:
            self._exit_stuck(problem)
        waits = time.time() - self.context.progress.since > self.silence  # else nothing is asked of the file system
        if waits and not self.has_written and self.context.attempt.stacks_path.is_dir():
            self._write_stacks()

    def _find_late_stop(self) -> str | None:
        """Not in the attempt's first step: it may compile for minutes, which is no rank's fault."""
        stop, progress = self.context.stop, self.context.progress
        if stop.since is None or (progress.activity != LOADING and progress.steps_made == 0):
            return None
        received = time.time() - (time.monotonic() - stop.since)
        if time.time() - max(received, progress.since) <= self.stop_timeout:
            return None
        notice = f"{stop.reason} received" if str(stop.reason).startswith("SIG") else stop.reason
        return f"{notice}, but the ranks did not stop within {self.stop_timeout:.0f} s"

    def _find_hang(self) -> str | None:
        """Where every rank should have come to something else by now. A rank that was itself stopped, alone or with
        its machine, waits as long again: on waking up it finds the others' heartbeats as old as its own."""
        now = time.time()
        if abs(now - self.last_look) > ASLEEP:
            self.awake_since = now
        self.last_look = now
        timeout, due = self.hang_timeout, self.find_due()
        if timeout is None or due is None or now < max(due, self.awake_since + timeout):
            return None  # without a look at the others' heartbeats
        beats = self._read_heartbeats()
        if isinstance(beats, str):
            return None
        # a rank of which nobody can tell, as it loads or exports, must at least give signs of life
        if any(now < (beat.time + timeout if beat.due is None else beat.due) for beat in beats):
            return None
        return f"no rank made progress for {now - max(beat.since for beat in beats):.0f} s"

    def _exit_stuck(self, problem: str) -> NoReturn:
        """End the attempt, after the other ranks had time to write down what they are at."""
        faulthandler.dump_traceback_later(LAST_RESORT, exit=True, file=1)
        self._write_stacks()
        self._wait_for_others()
        stuck, sentence = self.find_stuck_rank()
        self.abort(Stuck(f"{problem}: {sentence}", stuck))

    def _write_stacks(self) -> None:
        """This rank's, and what can be told of those on its host that do not answer. A full disk keeps no rank from its
        end."""
        self.has_written = True
        attempt, rank, progress = self.context.attempt, self.context.world.rank, self.context.progress
        place = f"{progress.activity}, after {progress.step} steps, for {time.time() - progress.since:.0f} s"
        collective = stacks.find_collective()
        if collective is not None:
            self.heartbeat.waits_in = collective
            place += f"; it waits for the other ranks in {collective}"
        try:
            stacks.write_stacks(attempt, rank, f"rank {rank} on {HOST} (process {os.getpid()}): {place}")
            beats = self._read_heartbeats()
            for beat in self._find_silent(beats) if not isinstance(beats, str) else []:
                if beat.host == HOST:
                    stacks.write_neighbour(attempt, beat)
            self.heartbeat.collectives = process_group.dump_flight_recorder(attempt.flight_recorder_path, rank)
            self.heartbeat.write(self.find_due())
        except OSError as error:
            print(f"ALARM: what the ranks are at could not be written: {error}", flush=True)

    def _wait_for_others(self) -> None:
        """Until every rank that answers has written down what it is at, or time is up."""
        deadline = time.monotonic() + SETTLE
        while time.monotonic() < deadline:
            beats = self._read_heartbeats()
            if isinstance(beats, str):
                return
            silent = self._find_silent(beats)
            if all(beat.collectives is not None or beat in silent for beat in beats):
                return
            time.sleep(0.2)

    def find_stuck_rank(self) -> tuple[StuckRank | None, str]:
        """Which rank to blame, and half a sentence about it: the one that has given no heartbeat for longest, or else
        the one that waits for nobody and is behind the others, in steps or in collectives."""
        beats = self._read_heartbeats()
        if isinstance(beats, str):
            return None, beats
        now = time.time()
        silent = min(self._find_silent(beats), key=lambda beat: beat.time, default=None)
        if silent is not None:
            found = stacks.read_neighbour(self.context.attempt, silent.rank)
            age = f"rank {silent.rank} on {silent.host} does not answer (last heartbeat {now - silent.time:.0f} s ago)"
            sentence = f"{age}: {found}" if found else age
            return StuckRank(silent.rank, silent.host, answers=False), sentence
        if len(beats) > 1 and all(beat.doing.startswith(WAITING_FOR_OTHERS) for beat in beats):
            shown = "; ".join(
                f"rank {beat.rank}{beat.doing.removeprefix(WAITING_FOR_OTHERS)}" for beat in beats[:_SHOWN]
            )
            return None, f"all ranks wait for each other: {shown}{'; …' * (len(beats) > _SHOWN)}"
        counted = all(beat.collectives is not None for beat in beats)

        def rank_by_blame(beat: HeartbeatRecord) -> tuple[bool, int, int, float]:
            collectives = beat.collectives or 0 if counted else 0
            return beat.doing.startswith(WAITING_FOR_OTHERS), beat.step, collectives, beat.since

        stuck = min(beats, key=rank_by_blame)
        place = f"after {stuck.step} steps, for {now - stuck.since:.0f} s"
        sentence = f"rank {stuck.rank} on {stuck.host} has been {stuck.doing}, {place}"
        return StuckRank(stuck.rank, stuck.host, answers=True), sentence

    def _find_silent(self, beats: list[HeartbeatRecord]) -> list[HeartbeatRecord]:
        return [beat for beat in beats if time.time() - beat.time > self.silence]

    def _read_heartbeats(self) -> list[HeartbeatRecord] | str:
        """Every rank's, by rank; or why nobody can tell which rank is stuck."""
        beats: list[HeartbeatRecord] = []
        for rank in range(self.context.world.size):
            try:
                beat = read_heartbeat(self.context.attempt.heartbeat_path(rank))
            except (OSError, LockstepError) as error:
                return f"nobody knows which, as the heartbeat of rank {rank} cannot be read ({error})"
            if beat is None:
                return f"rank {rank} never gave a heartbeat"
            beats.append(beat)
        return beats

    def abort(self, error: LockstepError) -> NoReturn:
        """End this process with a failure report; its main thread may hang in a collective."""
        os._exit(report_failure(self.context.attempt, self.context.world.rank, error))
