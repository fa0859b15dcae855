"""raydpo: preference optimisation of language models on a Ray cluster."""
