"""The errors a person can mend: each says the key, the value received and what is accepted."""


class GraftError(Exception):
    """Base of all errors shown as one line, without a traceback."""


class ConfigError(GraftError):
    """A key or a value of the configuration is not accepted."""


class DataError(GraftError):
    """The folder of photos, or a photo in it, is not usable."""


class WeightsError(GraftError):
    """A weights file is missing, damaged or made for another model."""


class RunError(GraftError):
    """A run directory is in use, finished, or belongs to another configuration."""


class DiskError(GraftError):
    """A disk is full, or a place on it may not be written."""


class CloudError(GraftError):
    """A job or another resource of the cloud failed, is not there, or cannot be reached."""
