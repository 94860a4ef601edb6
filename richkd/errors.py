"""The one exception that a stage turns into a line of text and exit code 1."""


class InputError(ValueError):
    """Bad input from outside: says what and where and what is allowed, in one line."""
