"""Tokenized blocks and their reference log-probs: records, schemas, reading and writing."""
