"""`load`: measure a runner, or compare two, by sending many jobs."""
