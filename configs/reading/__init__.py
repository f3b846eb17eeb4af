"""From YAML text to a RunConfig, and what to say where that does not work."""
