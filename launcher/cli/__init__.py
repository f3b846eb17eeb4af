"""The commands, each one function."""
