"""Attention over a packed row, in which completions share their prompt."""
