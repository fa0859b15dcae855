"""Every decoder of transformers, tiny, against its own forward: the lane `make test-models`."""
