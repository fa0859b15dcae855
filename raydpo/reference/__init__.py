"""The reference: its identity, the store of its scores, and the pool of workers that computes them."""
