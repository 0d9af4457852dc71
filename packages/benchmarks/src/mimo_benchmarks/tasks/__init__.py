"""Tasks that networks are trained on."""
