"""Where a stage's work runs: on this machine, or by Ray. What comes out is the same."""
