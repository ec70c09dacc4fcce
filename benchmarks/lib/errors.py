"""The one exception that a user of the benchmark is meant to see."""


class RequestError(Exception):
    """What was asked for cannot be run; the message says why in one line."""
