"""The demonstration: a model, preference pairs and a judge that need no download."""
