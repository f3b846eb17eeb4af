"""Which engine trains a run: a name in train/engines."""

from configs.schema import RunConfig


def choose_engine(config: RunConfig) -> str:
    """The engine of `config`, whose ZeRO stage is settled: `deepspeed`, `fsdp2`, or `ddp` where nothing is sharded."""
    if config.engine == "fsdp2":
        return "fsdp2"
    return "ddp" if config.zero == 0 else "deepspeed"


def name_sharding(zero: int | None) -> str:
    """What shards the training state, for a person: `ZeRO-2`, or `FSDP2`, which has no stages (None)."""
    return "FSDP2" if zero is None else f"ZeRO-{zero}"
