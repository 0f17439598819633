"""Units of work on disk: a pack to its next rung, which any process can train that sees the run directory."""
