"""Checkpoints on disk: their folders, manifests and fragments, and which of them are kept."""
