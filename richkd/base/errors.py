"""The exception for bad input: a stage prints it as one line and ends with exit code 1."""


class InputError(ValueError):
    """Bad input. The message says what is wrong, where, and what is allowed, in one line."""


def one_line(error: Exception) -> str:
    """The message of another library's error in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
