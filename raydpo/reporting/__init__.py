"""What a run tells: metrics, ledger, console lines, trackers."""
