"""The stream: from positions to tensors."""
