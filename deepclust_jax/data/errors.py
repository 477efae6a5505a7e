"""The one exception of this package."""


class DataError(ValueError):
    """Bad input data; one line saying what was expected, what was found and what to do."""
