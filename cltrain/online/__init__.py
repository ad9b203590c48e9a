"""What live traffic decides: assignment, sequential tests, interleaving, bandits, the policy layer.

Pure functions and plain states: nothing here knows of Ray, of HTTP or of a clock.
"""
