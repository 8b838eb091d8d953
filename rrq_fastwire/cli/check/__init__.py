"""`check`: whether a runner, in any language, keeps to the protocol."""
