"""Objectives as pure torch functions: log-probs per pair in, a loss per pair out."""
