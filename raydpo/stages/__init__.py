"""The driver's side of each stage of a run: plan, tokenize, score, feed, train, summarize."""
