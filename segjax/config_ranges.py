"""Which values a field of a configuration may have, and how messages say so."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # of an int32, which counts the steps


class Range(NamedTuple):
    """Which values a field may have, besides having the type of its default."""

    expected: str
    """The range in words, for messages and the documentation."""
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    """All values, if these are names (there may be more of a given form)."""


MAX_CHANNELS = 256  # of images; hyperspectral ones have about as many
FLOAT32_MAX = float.fromhex("0x1.fffffep+127")  # larger numbers are infinite


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) <= FLOAT32_MAX and low <= value <= high


def is_integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def integer(low: int, high: int = LARGEST) -> Range:
    if high == LARGEST:
        expected = {0: "0 or more", 1: "a positive integer"}[low] + " below 2^31"
    else:
        expected = f"an integer from {low} to {high}"
    return Range(expected, lambda value: is_integer(value, low, high))


def number(low: float, high: float = math.inf) -> Range:
    expected = (
        f"{low} to {high}"
        if high < math.inf
        else f"{low} or more, and finite in float32"
    )
    return Range(expected, lambda value: is_number(value, low, high))


def above(low: float, high: float = math.inf) -> Range:
    most = f"at most {high}" if high < math.inf else "finite in float32"
    return Range(
        f"above {low}, {most}", lambda value: is_number(value, low, high) and value > 0
    )


def one_of(*choices: str) -> Range:
    text = "one of " + ", ".join(choices)
    return Range(text, lambda value: value in choices, tuple(choices))


def is_expression(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return bool(text)


def is_rule(text: Any) -> bool:
    pattern, _, factor = str(text).rpartition("=")
    try:
        return is_expression(pattern) and is_number(float(factor), 0)
    except ValueError:
        return False


def are_weights(values: tuple) -> bool:
    return not values or (all(is_number(w, 0) for w in values) and max(values) > 0)


def is_size(value: tuple, low: int, high: int) -> bool:
    return len(value) == 2 and all(is_integer(side, low, high) for side in value)


SWITCH = Range("True or False", lambda value: isinstance(value, bool))
TEXT = Range("text", lambda value: isinstance(value, str))
# jax.random.key keeps the lower 32 bits: 2^32 would be the seed 0 again.
SEED = integer(0, 2**32 - 1)
FRACTION = number(0, 1)
SIZE = Range(
    "two positive integers (height, width) up to 65536, or (0, 0)",
    lambda value: value == (0, 0) or is_size(value, 1, 2**16),
)
WEIGHTS = Range(
    "one number per class, 0 or more and not all 0, or ()", lambda v: are_weights(v)
)
RULES = Range(
    "strings 'regex=factor' with valid regular expressions and factors of 0 or more, "
    "such as 'score_.*=10'",
    lambda value: all(map(is_rule, value)),
)
EXPRESSIONS = Range(
    "valid regular expressions that are not empty, such as 'bias', or ()",
    lambda value: all(map(is_expression, value)),
)
VALUES = Range(
    "two integers (low, high) from 0 to 65535 with low < high, or (0, 0)",
    lambda value: (
        value == (0, 0) or (is_size(value, 0, 2**16 - 1) and value[0] < value[1])
    ),
)
MASK_VALUES = Range(
    "integers from 0 to 65535",
    lambda value: all(is_integer(v, 0, 2**16 - 1) for v in value),
)

NAMES = Range(
    "names of classes, or ()", lambda value: all(isinstance(v, str) for v in value)
)


class Field(NamedTuple):
    """One field of a configuration."""

    default: Any
    range: Range
    meaning: str
