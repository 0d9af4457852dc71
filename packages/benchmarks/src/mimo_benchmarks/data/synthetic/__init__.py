"""Provide tasks whose sequences are drawn from a seed."""
