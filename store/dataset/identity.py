"""What makes a run's samples the same samples."""

from hashlib import sha256

from configs.schema import DataConfig
from configs.solve.buckets import choose_crop_sizes, list_crop_sizes
from store.dataset.index import Index


def identify_dataset(data: DataConfig, index: Index) -> str:
    """The index's own digest: of names, captions and lengths. With aspect-ratio buckets also of the size that each
    image is cut to, since one that is turned in place keeps its length, and would make another stream."""
    sizes = list_crop_sizes(data)
    if len(sizes) == 1:
        return index.digest
    chosen = choose_crop_sizes(sizes, index.widths, index.heights)
    return sha256(index.digest.encode() + chosen.tobytes()).hexdigest()
