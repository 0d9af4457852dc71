"""Networks that the program can train."""
