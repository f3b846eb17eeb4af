"""What runs do and did: status, logs, the reason of a failure, TensorBoard."""
