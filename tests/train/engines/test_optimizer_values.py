"""Moments of 8 bits: what is read as fp32 and loaded again has the same codes and scales, and so the same bits."""

from itertools import pairwise

import bitsandbytes.functional as bitsandbytes
import pytest
import torch

from train.engines.base import Fragment
from train.engines.optimizer_values import BlockwiseValues, quantise

LENGTH = 256 * 5000 + 77  # more than are dequantised at one time, and a block that is not full


def make_moments(signed: bool, scale: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(LENGTH, generator=draw) * torch.rand(LENGTH, generator=draw) ** 3 * scale
    values[torch.rand(LENGTH, generator=draw) < 0.05] = 0
    values[256 * 7 : 256 * 8] = 0  # a block of zeros
    values[256 * 9 : 256 * 10] = -values[256 * 9 : 256 * 10].abs()
    return values if signed else values.abs()


def quantise_as_the_library(values: torch.Tensor, qmap: torch.Tensor) -> BlockwiseValues:
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(values, qmap, 256)
    return BlockwiseValues(codes, absmax, qmap)


def read(state: BlockwiseValues) -> torch.Tensor:
    out = torch.empty(state.tensors[0].numel())
    state.read(0, out)
    return out


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-20, 1e-37])
def test_what_was_dequantised_gets_its_own_codes_and_scales_again(signed: bool, scale: float) -> None:
    qmap = bitsandbytes.create_dynamic_map(signed=signed)
    state = quantise_as_the_library(make_moments(signed, scale), qmap)
    codes, absmax = state.tensors
    values = read(state)
    assert torch.equal(values, torch.ops.bitsandbytes.dequantize_blockwise(codes, absmax, qmap, 256, torch.float32))
    if signed:
        assert (values.view(-1)[: 256 * 5000].view(-1, 256).amin(1) < -values[: 256 * 5000].view(-1, 256).amax(1)).any()
    again, scales = quantise(values, qmap)
    assert torch.equal(again, codes)
    assert torch.equal(scales, absmax)


@pytest.mark.parametrize("signed", [True, False])
def test_other_values_get_the_nearest_codes(signed: bool) -> None:
    """Those of another shape's blocks. The library's own kernel for CPUs is coarser near 0."""
    qmap = bitsandbytes.create_dynamic_map(signed=signed)
    values = make_moments(signed, 1.0)[: 256 * 40 + 77]
    codes, absmax = quantise(values, qmap)
    blocks = torch.nn.functional.pad(values, (0, 256 - 77)).view(-1, 256)
    assert torch.equal(absmax, blocks.abs().amax(1))
    read_again = read(BlockwiseValues(codes, absmax, qmap))
    every = absmax.repeat_interleave(256)[: len(values), None] * qmap
    least = (every - values[:, None]).abs().amin(1)
    assert torch.equal((read_again - values).abs(), least)


def test_a_state_is_read_and_loaded_by_fragments_that_end_anywhere() -> None:
    qmap = bitsandbytes.create_dynamic_map(signed=True)
    state = quantise_as_the_library(make_moments(True, 1e-3), qmap)
    whole, cuts = read(state), [0, 5, 300, 256 * 4096 + 1, LENGTH - 50, LENGTH]
    parts = []
    for start, end in pairwise(cuts):
        out = torch.empty(end - start)
        state.read(start, out)
        assert torch.equal(out, whole[start:end])
        parts.append((Fragment("a", 1000 + start, end - start), start))

    other = BlockwiseValues(torch.zeros(LENGTH, dtype=torch.uint8), torch.zeros(5001), qmap)
    other.load(parts, lambda name, offset, length: whole[offset - 1000 : offset - 1000 + length])
    assert all(map(torch.equal, other.tensors, state.tensors))

    other.load(parts[:-1], lambda name, offset, length: whole[offset - 1000 : offset - 1000 + length])
    assert not read(other)[LENGTH - 50 :].any(), "what no fragment covers is padding"
