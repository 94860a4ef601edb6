"""The one exception that a stage turns into a line of text and exit code 1."""


class InputError(ValueError):
    """Bad input from outside: says what and where and what is allowed, in one line."""


def one_line(error: Exception) -> str:
    """What another library says, at a length that one reads."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
