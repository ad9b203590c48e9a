"""Data: sources, the event log, the label-time rule, windows, snapshots, encoding."""
