"""How much the cache of encodings holds of a run's data (docs/design.md, contract 7), without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.known_models import PipelineSize
from configs.pipelines import SIZE_NUMBERS, LatentShape
from configs.schema import RunConfig
from configs.solve.activations import TEXT_TOKENS
from configs.solve.device_memory import count_vae_width
from configs.solve.hardware import Hardware
from configs.solve.memory import count_width

_KEY = 48  # bytes beside each encoding: key, checksum, and its line of the map


@dataclass(frozen=True)
class EncodingsSize:
    """Of one kind."""

    kind: str  # moments or states
    count: int
    bytes: int


def estimate_encodings(
    config: RunConfig, size: PipelineSize, hardware: Hardware, samples: int, captions: int
) -> list[EncodingsSize] | None:
    """What `data.cache` keeps of so many samples, and of all their captions and the empty one, were no two the same;
    None where the model's parts are not known."""
    data = config.data
    vae, unet = size.configs.get("vae"), size.configs.get("unet")
    if data.cached == "off":
        return []
    if vae is None or unet is None or not vae.get("block_out_channels"):
        return None
    shape = LatentShape.of_vae({"latent_channels": 4} | dict(vae), data.resolution, data.resolution)
    views = (data.crops or 1) * (2 if data.flip else 1)
    moments = 2 * shape.channels * shape.height * shape.width * count_vae_width(config, hardware)
    found = [EncodingsSize("moments", views * samples, views * samples * (moments + _KEY))]
    if data.cached == "all":
        states = TEXT_TOKENS * data.caption_chunks * unet["cross_attention_dim"] + count_pooled(unet)
        states *= count_width(config)
        found.append(EncodingsSize("states", captions + 1, (captions + 1) * (states + _KEY)))
    return found


def count_pooled(unet: Mapping[str, Any]) -> int:
    """Numbers of the pooled embedding that a UNet is told beside a caption's states, by its config."""
    if unet.get("addition_embed_type") != "text_time":
        return 0
    told: int = unet["projection_class_embeddings_input_dim"]
    return told - SIZE_NUMBERS * int(unet["addition_time_embed_dim"])
