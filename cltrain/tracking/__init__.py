"""Trackers: what a run leaves for people and programs to look at. A tracker that is down never stops a loop."""
