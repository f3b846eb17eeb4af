"""Why an attempt ended and what follows from it; pure."""
