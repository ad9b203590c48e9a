"""Monitor: what a window looks like, in small mergeable numbers."""

from cltrain.monitor.profile import Profile, profile_of

__all__ = ["Profile", "profile_of"]
