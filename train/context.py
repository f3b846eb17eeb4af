"""What one rank knows of its attempt from the first step to the last."""

import threading
from dataclasses import dataclass, field

from configs.schema import RunConfig
from configs.solve.length import Length
from store.run.attempt_plan import AttemptPlan
from store.run.run_dir import Attempt, RunDir
from train.process_group import World
from train.progress import Progress
from train.stop_signal import StopSignal


@dataclass(frozen=True)
class RankContext:
    """Handed to whoever would otherwise need most of these one by one."""

    run: RunDir
    attempt: Attempt
    plan: AttemptPlan
    config: RunConfig
    world: World
    progress: Progress
    stop: StopSignal
    save_requested: threading.Event = field(default_factory=threading.Event)  # on rank 0, by a person

    @property
    def length(self) -> Length:
        return Length(self.plan.total_steps, self.plan.batch_plan.batch, self.plan.count_epoch(self.config))
