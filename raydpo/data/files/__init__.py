"""Read the numbered rows of one shard: open and decompress it, detect its format, and parse its rows."""
