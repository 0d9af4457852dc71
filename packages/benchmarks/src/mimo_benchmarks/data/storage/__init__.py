"""Store data sets: where files lie, how they are downloaded, checked and generated."""
