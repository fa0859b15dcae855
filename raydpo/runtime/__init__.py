"""What knows of Ray's cluster and of file systems."""
