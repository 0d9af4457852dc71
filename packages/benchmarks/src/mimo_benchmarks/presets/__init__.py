"""Presets: the settings of every experiment, by name."""
