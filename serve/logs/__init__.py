"""What is kept of traffic: predictions, feedback and profiles, in segments that survive a crash."""
