"""Provide the five tasks of the Long Range Arena: sequences to classify."""
