"""`lockstep plan`: what a run will be."""
