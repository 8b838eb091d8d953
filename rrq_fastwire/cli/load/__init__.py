"""`load`: what a runner makes of many jobs, or two runners side by side."""
