"""Find the blocks of shards that an earlier run has tokenized."""
