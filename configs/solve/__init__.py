"""What follows from a config: batch, length, learning rate, engine, memory, what is auto, the DeepSpeed config."""
