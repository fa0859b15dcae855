"""Objectives as pure torch functions: per-pair log-probs in, per-pair losses out."""
