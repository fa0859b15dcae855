"""The reference model: what it is, the scores kept of it, and the pool of actors that makes them."""
