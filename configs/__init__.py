"""What launcher and ranks must agree on. Imports no torch."""
