"""Where images come from and how they are varied in training."""
