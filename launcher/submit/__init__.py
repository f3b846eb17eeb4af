"""`lockstep submit` and `sweep`: check everything, write the run, start it."""
