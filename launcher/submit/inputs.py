"""What the runs of one command have in common, each read once: a sweep has many runs of one dataset and one model."""

from functools import cached_property

from configs.model_file import is_model_file
from configs.schema import RunConfig, SourceConfig
from configs.solve.hardware import Hardware
from launcher.data.dataset import index_dataset
from launcher.hub.fetch import check_model, find_commit, resolve_model
from launcher.hub.model_file import resolve_model_file
from store.dataset.bad_samples import check_bad_samples
from store.dataset.kept_index import KeptIndex
from store.run.code_version import read_code_version

_ModelKey = tuple[str | None, ...]


def _key_model(config: RunConfig) -> _ModelKey:
    return config.model, config.revision, config.variant, config.pipeline_config


class RunInputs:
    """One for each command. `hardware`: that the runs' ranks compute on."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self._datasets: dict[str, KeptIndex] = {}
        self._model_commits: dict[_ModelKey, str | None] = {}
        self._models: dict[_ModelKey, str] = {}
        self._commits: dict[str, str] = {}

    def index_dataset(self, config: RunConfig) -> KeptIndex:
        """The samples to train on. Raises UserError where they cannot be had, or bad ones are not to be skipped."""
        data = config.data
        key = repr((data.listed_sources, data.check, config.cache_folder))
        if key not in self._datasets:
            self._datasets[key] = index_dataset(config)
        kept = self._datasets[key]
        check_bad_samples(data, kept.bad_samples, len(kept.index))
        return kept

    def find_commit(self, source: SourceConfig) -> str:
        """The commit of a data set of the hub, as a run that begins now has it."""
        assert source.hub is not None
        if source.hub not in self._commits:
            self._commits[source.hub] = find_commit(source)
        return self._commits[source.hub]

    def check_model(self, config: RunConfig) -> str | None:
        """The model's commit, None of a folder. Raises UserError where it is none that this version trains."""
        key = _key_model(config)
        if key not in self._model_commits:
            self._model_commits[key] = check_model(config)
        return self._model_commits[key]

    def resolve_model(self, config: RunConfig) -> str:
        key = _key_model(config)
        if key not in self._models:
            resolve = resolve_model_file if is_model_file(config.model) else resolve_model
            self._models[key] = str(resolve(config))
        return self._models[key]

    @cached_property
    def code_digest(self) -> str:
        return read_code_version().digest
