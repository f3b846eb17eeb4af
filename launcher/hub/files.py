"""Which files on the hub are wanted: of a data set its samples, of a model the parts of its pipeline."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from configs.errors import UserError
from configs.model_folder import list_weight_names
from configs.pipelines import PipelineClass
from store.dataset.sources.tar_shards import SUFFIXES
from store.dataset.sources.walk import IMAGE_SUFFIXES

_OTHER_SPLITS = re.compile(r"(.*[/_.-])?(test|val|valid|validation|dev|eval)([/_.-].*)?")
# Where a train split lies, as datasets has it: patterns of paths without suffix, and expressions; the first that fits.
_TRAIN = {
    "**/train[-._]*": r"(.*/)?train[-._][^/]*",
    "**/train": r"(.*/)?train",
    "**/*[-._]train[-._]*": r"(.*/)?[^/]*[-._]train[-._][^/]*",
    "**/train/**/*": r"(.*/)?train/.*",
}


@dataclass(frozen=True)
class HubFiles:
    """The samples' files, and what finds them again in the data set's folder."""

    kind: Literal["parquet", "tars", "images"]
    pattern: str
    names: list[str]

    @property
    def wanted(self) -> str | None:
        """What to ask the hub's client for, whose * fits / as well: one pattern, as it holds each file against each."""
        if self.kind == "images":
            return f"{self.pattern}/*" if self.pattern else None
        return self.pattern.replace("**/", "*")


def choose_hub_files(repo: str, names: Sequence[str]) -> HubFiles:
    """The parquet files among `names`, else the tar shards, else the images; of the train split where there are splits.

    Raises UserError where there is nothing of all this, or the files are of several subsets.
    """
    for kind, suffixes in (("parquet", (".parquet",)), ("tars", SUFFIXES)):
        found = sorted(name for name in names if name.endswith(suffixes))
        if found:
            pattern, chosen = _choose_split(repo, found)
            suffix = PurePosixPath(chosen[0]).suffix
            files = HubFiles(kind, f"{pattern}{suffix}", chosen)  # type: ignore[arg-type]
            _check_subsets(repo, files)
            return files
    if any(name.lower().endswith(tuple(IMAGE_SUFFIXES)) for name in names):
        below = [name for name in names if name.startswith("train/")]
        return HubFiles("images", "train" if below else "", below or list(names))
    listed = ", ".join(sorted(names)[:5]) or "none"
    raise UserError(f"data set {repo}: holds no parquet files, tar shards or images (its files: {listed})")


def _choose_split(repo: str, names: list[str]) -> tuple[str, list[str]]:
    """A pattern without suffix, and what fits it."""
    for pattern, expression in _TRAIN.items():
        chosen = [name for name in names if re.fullmatch(expression, str(PurePosixPath(name).with_suffix("")))]
        if chosen:
            return pattern, chosen
    if not any(_OTHER_SPLITS.fullmatch(name) for name in names):
        return "**/*", names
    raise UserError(f"data set {repo}: has splits, and none is named train; its files: {', '.join(names[:5])}")


def _check_subsets(repo: str, files: HubFiles) -> None:
    folders = sorted({str(PurePosixPath(name).parent) for name in files.names})
    if files.kind == "parquet" and len(folders) > 1:
        raise UserError(
            f"data set {repo}: has parquet files in several folders ({', '.join(folders[:5])}), which may be several "
            f"subsets; fetch it with hf download --repo-type dataset {repo}, and name one with parquet: PATH"
        )


_SETTINGS = (".json", ".txt", ".model")  # suffixes of what lies in a part beside its weights
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # diffusers' parts, and transformers'


def choose_model_files(names: Sequence[str], pipeline: PipelineClass, variant: str | None) -> list[str]:
    """Those of a model's files, `names`, that its pipeline is made of: of each part its settings, and its weights once,
    of `variant` where it has them. Left out are pickled, ONNX and Flax copies of the weights, the other variants, and
    what lies beside the parts, such as single files of the whole model."""
    chosen = [name for name in names if name == "model_index.json"]
    for part in (pipeline.trained, *pipeline.frozen):
        files = {PurePosixPath(name).name for name in names if str(PurePosixPath(name).parent) == part}
        settings = {file for file in files if file.endswith(_SETTINGS) and ".index." not in file}
        chosen += [f"{part}/{file}" for file in sorted(settings | set(_choose_weights(files, variant)))]
    return chosen


def _choose_weights(files: Collection[str], variant: str | None) -> list[str]:
    """The one file of a part, or all of them and their index."""
    for own in dict.fromkeys((variant, None)):
        for name in _WEIGHTS:
            single, index = list_weight_names(name, own)
            if single in files:
                return [single]
            if index in files:
                stem = re.escape(name.removesuffix(".safetensors"))
                number = r"-\d+-of-\d+"
                shard = rf"{stem}{number}\.safetensors"
                if own is not None:  # newer releases of the libraries name the variant first, older ones last
                    shard = rf"{stem}(\.{own}{number}|{number}\.{own})\.safetensors"
                return [index, *(file for file in files if re.fullmatch(shard, file))]
    return []
