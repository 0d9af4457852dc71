"""Sequences made from a seed."""
