"""What a config trains on: the index of its dataset, its encodings, and `lockstep data`, which shows what is there."""
