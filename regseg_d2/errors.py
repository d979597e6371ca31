"""Errors that a user can cause and cure.

The command line tools print them without a traceback. Each message names what is wrong (file, key
or value), what was expected, and what to do.
"""


class UserError(ValueError):
    """Base of every error whose cure lies with the user."""


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class DatasetError(UserError):
    """A data set, image or label file that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot or must not be loaded."""
