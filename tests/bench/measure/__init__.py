"""The measuring part of the benchmark: runs TRL and raydpo in separate processes, and takes their times and memory."""
