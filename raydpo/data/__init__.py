"""Read preference shards, convert their rows to pairs and write tokenized blocks."""
