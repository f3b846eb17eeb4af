"""What the runs of one command have in common, each read once: a sweep has many runs of one dataset and one model."""

from functools import cached_property
from pathlib import Path

from configs.solve.hardware import Hardware
from launcher.submit.hub import check_model, resolve_model
from store.dataset.listing import DatasetListing, check_images, list_samples
from store.run.code_version import read_code_version


class RunInputs:
    """One for each command. `hardware`: that the runs' ranks compute on."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self._listings: dict[Path, DatasetListing] = {}
        self._checked_models: set[str] = set()
        self._models: dict[str, str] = {}

    def list_images(self, folder: Path) -> DatasetListing:
        """The samples of `folder`, less those whose header does not read."""
        if folder not in self._listings:
            self._listings[folder] = check_images(folder, list_samples(folder))
        return self._listings[folder]

    def check_model(self, model: str) -> None:
        """Raises UserError where `model` is none that this version trains."""
        if model not in self._checked_models:
            check_model(model)
            self._checked_models.add(model)

    def resolve_model(self, model: str) -> str:
        if model not in self._models:
            self._models[model] = str(resolve_model(model))
        return self._models[model]

    @cached_property
    def code_digest(self) -> str:
        return read_code_version().digest
