"""The order of pairs in an epoch and their division among steps, ranks and micro-batches, in pure numpy."""
