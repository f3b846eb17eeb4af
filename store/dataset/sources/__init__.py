"""Where samples come from: an image folder. Each is a file here that fits `Source`."""
