"""What only watches: metrics, sample images, the environment."""
