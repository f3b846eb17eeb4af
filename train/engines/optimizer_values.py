"""How an optimizer's library keeps a state: as one fp32 tensor, or in 8 bits with a scale for every block."""

from collections.abc import Callable, Sequence

import torch

from train.engines.base import Fragment

_BLOCK = 256  # elements that have a scale in common, in bitsandbytes
_CHUNK = 1 << 20  # elements that are dequantised, or quantised, at one time; whole blocks

ReadValues = Callable[[str, int, int], torch.Tensor]  # name, offset, length → 1-D, fp32, on the CPU


class Fp32Values:
    """A state that is fp32, in the library's own tensor."""

    def __init__(self, values: torch.Tensor):
        self.tensors = [values]  # all that this state consists of
        self._values = values.view(-1)

    def read(self, start: int, out: torch.Tensor) -> None:
        """Copy the elements from `start` on into `out`; the host waits for no GPU."""
        out.copy_(self._values.narrow(0, start, out.numel()), non_blocking=True)

    def load(self, places: Sequence[tuple[Fragment, int]], read: ReadValues) -> None:
        """Take each fragment, which begins at the element beside it, from `read`."""
        for fragment, start in places:
            values = read(fragment.name, fragment.offset, fragment.length)
            self._values.narrow(0, start, fragment.length).copy_(values)


class BlockwiseValues:
    """A state of 8 bits (Dettmers et al. 2022, section 2.1): element i is qmap[codes[i]] · absmax[i // 256], in fp32.

    What is read and loaded again is the same, to the bit, where the blocks are those that were read.
    """

    def __init__(self, codes: torch.Tensor, absmax: torch.Tensor, qmap: torch.Tensor):
        self.tensors = [codes, absmax]
        self._codes, self._absmax, self._qmap = codes.view(-1), absmax, qmap

    def read(self, start: int, out: torch.Tensor) -> None:
        """Copy the elements from `start` on into `out`, dequantised; the host waits for no GPU."""
        end = start + out.numel()
        for low in range(start, end, _CHUNK):
            high = min(end, low + _CHUNK)
            blocks = slice(low // _BLOCK, -(-high // _BLOCK))
            scales = self._absmax[blocks].repeat_interleave(_BLOCK, output_size=_BLOCK * (blocks.stop - blocks.start))
            values = self._qmap[self._codes[low:high].int()] * scales.narrow(0, low % _BLOCK, high - low)
            out[low - start : high - start].copy_(values, non_blocking=True)

    def load(self, places: Sequence[tuple[Fragment, int]], read: ReadValues) -> None:
        """Take each fragment, which begins at the element beside it, from `read`; what lies between them becomes 0."""
        total = self._codes.numel()
        for begin in range(0, total, _CHUNK):
            values = torch.zeros(min(_CHUNK, total - begin))
            for fragment, start in places:
                low, high = max(start, begin), min(start + fragment.length, begin + values.numel())
                if low < high:
                    values[low - begin : high - begin] = read(fragment.name, fragment.offset + low - start, high - low)
            codes, absmax = quantise(values.to(self._codes.device), self._qmap)
            self._codes.narrow(0, begin, codes.numel()).copy_(codes)
            self._absmax.narrow(0, begin // _BLOCK, absmax.numel()).copy_(absmax)


def quantise(values: torch.Tensor, qmap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and one scale per block of 1-D fp32 `values`, of which the last block may be shorter; `qmap` is ascending.

    A block whose values were dequantised gets a scale and codes that stand for just these values. Its largest absolute
    value says which scale that was, but where it is negative: qmap ends at 1 and begins at -0.993, so that the scale is
    larger than any value, and is looked for among those floats that come to it.
    """
    rest = -values.numel() % _BLOCK
    blocks = torch.nn.functional.pad(values, (0, rest)).view(-1, _BLOCK)
    largest = blocks.abs().amax(1)
    absmax = largest.clone()
    codes = _find_codes(blocks, absmax, qmap)
    if qmap[0] < 0:
        open_blocks = ~_is_exact(blocks, codes, absmax, qmap) & (blocks.amin(1) == -largest)
        for scales in _list_scales(largest / -qmap[0]):
            tried = open_blocks.nonzero().view(-1)
            found = _find_codes(blocks[tried], scales[tried], qmap)
            is_found = _is_exact(blocks[tried], found, scales[tried], qmap)
            codes[tried[is_found]], absmax[tried[is_found]] = found[is_found], scales[tried][is_found]
            open_blocks[tried[is_found]] = False
    return codes.view(-1)[: values.numel()], absmax


def _list_scales(middle: torch.Tensor) -> list[torch.Tensor]:
    """`middle`, and the two floats on either side of it: as far off as two roundings bring it."""
    up, down = torch.full_like(middle, torch.inf), torch.full_like(middle, -torch.inf)
    above, below = torch.nextafter(middle, up), torch.nextafter(middle, down)
    return [middle, above, below, torch.nextafter(above, up), torch.nextafter(below, down)]


def _find_codes(blocks: torch.Tensor, absmax: torch.Tensor, qmap: torch.Tensor) -> torch.Tensor:
    """Of the nearest values of `qmap`. A block of zeros has code 0 throughout, as bitsandbytes leaves it: a zero then
    keeps even its sign."""
    middles = (qmap[1:] + qmap[:-1]) / 2
    is_zero = (absmax == 0)[:, None]
    codes = torch.bucketize(blocks / absmax[:, None].masked_fill(is_zero, 1), middles)
    return codes.masked_fill(is_zero, 0).to(torch.uint8)


def _is_exact(blocks: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, qmap: torch.Tensor) -> torch.Tensor:
    return (qmap[codes.int()] * absmax[:, None] == blocks).all(1)
