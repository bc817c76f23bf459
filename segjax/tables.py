"""Tables in plain text and in Markdown."""

import re
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
"""The rows of a table, all of one length."""


def text_table(rows: Rows, *, titles: bool = True) -> str:
    """Aligned columns, those of numbers to the right.

    Args:
      rows: of the table.
      titles: whether the first row holds titles, which do not tell what a column holds.
    """
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        right = _holds_numbers(column[titles:])
        columns.append([c.rjust(width) if right else c.ljust(width) for c in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns))


def _holds_numbers(column: Sequence[str]) -> bool:
    """Whether all values begin with a digit or are missing; 8x8 is no number."""
    values = [value for value in column if value not in ("", "-")]
    return bool(values) and all(re.match(r"[-+]?[\d.]+(?![\dx])", x) for x in values)


def markdown_table(rows: Rows) -> str:
    """GitHub's pipe tables."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
