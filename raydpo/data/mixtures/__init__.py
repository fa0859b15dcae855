"""Choose the rows of a run from several data sets."""
