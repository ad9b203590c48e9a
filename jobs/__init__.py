"""Entry points, one a job: `python -m jobs.<name> [overrides]`."""
