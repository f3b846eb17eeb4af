"""The config: every key a user may write, its unit, its default, one line of meaning and what it changes.

`lockstep schema` prints these models as JSON Schema. Checks that need one field stand on the field, checks that need
two stand in a model validator, checks that need the machine or the data stand with whoever asks for them.
"""

from configs.schema.base import Section, get_entry_section, get_section
from configs.schema.disagreements import DISAGREEMENT, LENGTHS, Disagreement, find_disagreements
from configs.schema.lora import LoraConfig
from configs.schema.objective import LossWeighting, Prediction, TimestepsConfig
from configs.schema.optimizer import OptimizerConfig
from configs.schema.run import RunConfig
from configs.schema.sections import (
    MOST_WORKERS,
    BucketsConfig,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EmaConfig,
    PicturesConfig,
)
from configs.schema.sources import SourceConfig, SourceKind

__all__ = [
    "DISAGREEMENT",
    "LENGTHS",
    "MOST_WORKERS",
    "BucketsConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "DataConfig",
    "Disagreement",
    "EmaConfig",
    "LoraConfig",
    "LossWeighting",
    "OptimizerConfig",
    "PicturesConfig",
    "Prediction",
    "RunConfig",
    "Section",
    "SourceConfig",
    "SourceKind",
    "TimestepsConfig",
    "find_disagreements",
    "get_entry_section",
    "get_section",
]
