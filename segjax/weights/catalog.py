"""The published networks as pairs of a model and its fields."""

from collections.abc import Sequence
from typing import Any

from segjax import published as table

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    name: (network.model, dict(network.fields))
    for name, network in table.NETWORKS.items()
}


def published(name: str, models: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The model and fields of a published network, or (name, {}) for one of `models`.

    Raises:
      UserError: neither; names the nearest.
    """
    network = table.find(name, "--model", models)
    return network.model, dict(network.fields)
