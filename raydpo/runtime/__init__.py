"""Access to the Ray cluster and to file systems."""
