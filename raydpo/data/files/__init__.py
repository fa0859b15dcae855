"""Rows of one shard: its bytes, its format, and each row with its number."""
