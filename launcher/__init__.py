"""People's words: the CLI, plan, submit, status, logs."""
