"""`lockstep data`: what a config's dataset holds, before anything is trained on it."""
