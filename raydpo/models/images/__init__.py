"""Images as input of a model: read from the store, encoded once each, and put where their tokens are."""
