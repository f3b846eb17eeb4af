"""From names on the hub to files on this machine."""
