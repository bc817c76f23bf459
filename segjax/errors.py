"""The one error that means "the input is wrong", as opposed to a bug."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the thing, what was found and the remedy.

    Programs print it as ``error: ...`` without a traceback and exit with code 2.
    """


class Unavailable(UserError):
    """Something that is needed cannot be reached now; starting again may help.

    Programs exit with code 69.
    """


def unknown(address: str, value: object, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones; suggests the nearest.

    Args:
      address: what holds the value, as the user would set it: "--config.loss.name", or
        the path of a file.
      value: the name that was found.
      known: all names that would have been right.
    """
    names = [str(name) for name in sorted(known)]  # numbers by value
    near = nearest(value, names)
    hint = f"did you mean {near!r}? " if near else ""
    return UserError(
        f"{address}: unknown value {str(value)!r}; {hint}known: {', '.join(names)}"
    )


def nearest(value: object, known: Iterable[str]) -> str:
    """The most similar of the known names, or "" if none is similar."""
    near = difflib.get_close_matches(str(value), sorted(map(str, known)), 1)
    return near[0] if near else ""
