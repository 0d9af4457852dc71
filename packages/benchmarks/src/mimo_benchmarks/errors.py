"""One exception a boundary; each message names the file or value and the remedy."""


class ConfigError(ValueError):
    """A setting that cannot work."""


class DatasetError(RuntimeError):
    """A data set that is missing or not what it should be."""
