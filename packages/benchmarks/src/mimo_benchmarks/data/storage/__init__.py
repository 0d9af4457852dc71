"""Files: where they lie, how they are checked, fetched and generated."""
