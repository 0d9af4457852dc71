"""Images, and how they are varied."""
