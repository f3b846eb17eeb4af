"""The demo: an image set and a small but complete Stable Diffusion, made from code."""
