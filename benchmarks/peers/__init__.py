"""Other implementations of the same work, each in an environment of its own, timed beside ours."""
