"""What the program can train."""
