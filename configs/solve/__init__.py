"""What follows from a config: batch, length, learning rate, memory, the DeepSpeed config."""
