"""The outputs of a run: metrics, ledger, console lines and trackers."""
