"""`tap`: show the messages between orchestrator and runner as they pass."""
