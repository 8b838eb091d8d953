"""`check`: check that a runner, in any language, keeps to the protocol."""
