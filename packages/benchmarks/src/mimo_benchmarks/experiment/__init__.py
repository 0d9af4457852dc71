"""One experiment from start to table."""
