"""`tap`: what passes between orchestrator and runner, as it passes."""
