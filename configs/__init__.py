"""What a user writes, and what follows from it. Imports no torch."""
