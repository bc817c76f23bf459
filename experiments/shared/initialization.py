"""Starting a model from another training run."""

from pathlib import Path
from typing import Any

import jax

from segjax import config as config_lib
from segjax import weights
from segjax import workdir as workdir_lib
from segjax.errors import UserError
from segjax.inference.trained import load_model


def start_from(
    workdir: Path,
    params: dict,
    batch_stats: dict,
    num_classes: int,
    mesh: jax.sharding.Mesh,
) -> tuple[dict, dict, weights.Report]:
    """Starts a model from another training run, by the names of its layers.

    Of the run's best checkpoint, or its latest if it has not evaluated yet. Layers that
    only the new model has stay as they are, and so do those that differ in nothing but
    the number of classes; all are reported.

    Args:
      workdir: of the other run.
      params, batch_stats: of the new model as initialized.
      num_classes: of the new model.
      mesh: whose devices read the checkpoint.

    Returns:
      The two with arrays of that run, and a report.

    Raises:
      UserError: no such run, or one whose layers of the same names differ otherwise.
    """
    info = workdir_lib.read_dataset(workdir)
    config = config_lib.load(workdir / "config.json")
    _, variables, step = load_model(config, workdir, info, "best", mesh)
    tree = {"params": params, "batch_stats": batch_stats}
    theirs = _by_layer(weights.flatten(jax.device_get(variables)))
    classes = len(info.classes), num_classes
    chosen, loaded, fresh, wrong = {}, [], {}, []
    for layer, ours in _by_layer(weights.flatten(tree)).items():
        found = theirs.pop(layer, {})
        other = [
            f"{name} {found[name].shape if name in found else 'missing'} there, "
            f"{ours[name].shape if name in ours else 'missing'} here"
            for name in sorted(ours.keys() | found.keys())
            if name not in ours
            or name not in found
            or not _same_but_classes(found[name].shape, ours[name].shape, classes)
        ]
        if not found:
            fresh[layer] = "not in that run"
        elif other:
            wrong += other
        elif any(found[name].shape != ours[name].shape for name in ours):
            fresh[layer] = f"that run has {classes[0]} classes"
        else:
            loaded.append(layer)
            chosen |= found
    if wrong or not loaded:
        reason = wrong[0] if wrong else "no layer has the same name"
        raise UserError(
            f"config.init_from: the {config.model_name} of {workdir} does not fit the "
            f"model: {reason}; give both the same fields of config.model"
        )
    new = weights.replace(tree, chosen)
    source = f"{workdir}, step {step}"
    report = weights.Report(source, tuple(loaded), fresh, tuple(theirs))
    return new["params"], new["batch_stats"], report


def _by_layer(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"params/LAYER/kernel": array} -> {LAYER: {"params/LAYER/kernel": array}}."""
    layers: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        layer = name.partition("/")[2].rpartition("/")[0]
        layers.setdefault(layer, {})[name] = leaf
    return layers


def _same_but_classes(
    theirs: tuple[int, ...], ours: tuple[int, ...], classes: tuple[int, int]
) -> bool:
    """Whether two shapes are equal but for axes in proportion to the class counts."""
    return len(theirs) == len(ours) and all(
        a == b or a * classes[1] == b * classes[0] for a, b in zip(theirs, ours)
    )
