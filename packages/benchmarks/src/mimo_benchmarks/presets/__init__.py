"""Every experiment by name."""
