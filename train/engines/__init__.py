"""What shards the training state, steps it, and names its fragments."""
