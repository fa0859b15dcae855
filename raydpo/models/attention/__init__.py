"""Attention over packed rows, in which the completions of a prompt share its tokens."""
