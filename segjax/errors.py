"""The one error that means "the input is wrong", as opposed to a bug."""


class UserError(ValueError):
    """Bad input: one line that names the thing, what was found and the remedy.

    Programs print it as ``error: ...`` without a traceback and exit with code 2.
    """
