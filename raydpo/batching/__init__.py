"""Which pairs a step takes, in which order, and how ranks share them: pure numpy."""
