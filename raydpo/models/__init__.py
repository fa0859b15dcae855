"""Models of transformers: found, loaded, adapted, computed with and exported."""
