"""The samples that do not decode: each rank lists its own as it comes to them, and all ranks count them together."""

from store.dataset.bad_decodes import BadDecode, list_bad_decodes
from store.files import open_to_append
from train.context import RankContext


class BadSamples:
    """Those of a run that goes on with `first_step`; those of earlier attempts, up to there, are counted too."""

    def __init__(self, context: RankContext, first_step: int):
        self.world, self.path = context.world, context.attempt.bad_samples_path(context.world.rank)
        end = (first_step - 1) * context.length.batch
        earlier = list_bad_decodes(context.run, end) if self.world.is_main_process else []
        self._untold = {_identify(found) for found in earlier}  # what the other ranks do not know yet
        self._mine: set[tuple[int, str]] = set()  # of this attempt
        self._known: set[tuple[int, str]] = set()  # of all ranks and attempts
        self._lost = False

    def add(self, found: BadDecode) -> None:
        """Say and write down what this rank came to, once for each sample."""
        identity = _identify(found)
        if identity in self._mine:
            return
        print(found, flush=True)
        self._mine.add(identity)
        self._untold.add(identity)
        try:
            self.path.parent.mkdir(exist_ok=True)
            with open(open_to_append(self.path), "a", encoding="utf-8") as file:
                file.write(found.format_line())
        except OSError as error:
            if not self._lost:
                print(f"ALARM: the list of bad samples is not complete: {error}", flush=True)
            self._lost = True

    def count(self) -> int:
        """How many samples were found bad at the positions that the run has consumed. A collective: the same on every
        rank, and whatever shapes the run had."""
        if self.world.any_rank([bool(self._untold)])[0]:
            self._known = self._known.union(*self.world.gather(self._untold))
            self._untold = set()
        return len(self._known)


def _identify(found: BadDecode) -> tuple[int, str]:
    return found.sample.source, found.sample.name
