"""From a position in the run to the micro-batches of each rank."""
