"""From preference shards to tokenized blocks."""
