"""The error that a user's input causes."""


class InputError(ValueError):
    """Something given by the user cannot be used: one readable sentence that says what was expected and what came.

    The command line prints the sentence without a traceback and exits with status 2.
    """
