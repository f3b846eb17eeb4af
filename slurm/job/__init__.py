"""One job: its request, its script, its nodes, what its tasks do, and the record of it."""
