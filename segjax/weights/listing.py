"""Names of layers in messages."""

from collections.abc import Mapping, Sequence


def listed_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """ "missing: a, b; wrong: c" of what there is, or ""."""
    return "; ".join(
        f"{kind}: {listed(names)}" for kind, names in problems.items() if names
    )


def listed(names: Sequence[str], limit: int = 10) -> str:
    """The names with commas, the first `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
