"""Checkpoints: the only file that knows orbax.

A checkpoint is a folder named by its step with three items: ``model`` (params and
batch_stats, all that inference needs), ``optimizer`` (opt_state) and ``meta`` (JSON:
the shape, dtype and CRC-32 of every array, and what the caller adds).  Orbax writes
it under a temporary name and renames it when complete, so a kill at any moment
leaves the previous ones; the CRCs find damage that the file format would not.
"""

import logging
import shutil
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from segjax.errors import UserError
from segjax.training import TrainState

log = logging.getLogger(__name__)


def open_folder(folder: str | Path, keep: int) -> ocp.CheckpointManager:
    """A manager of the checkpoints in ``folder``; the newest ``keep`` stay."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _items(state: TrainState) -> dict:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    return {"model": model, "optimizer": state.opt_state}


def _named_leaves(tree) -> Iterable[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _crc(array: jax.Array) -> int:
    # The state is replicated, so any one shard is the whole array.
    return zlib.crc32(np.ascontiguousarray(array.addressable_data(0)))


def save(manager: ocp.CheckpointManager, state: TrainState, extra: dict) -> None:
    """Starts writing ``state`` as the checkpoint of its step (asynchronously).

    Saving a step that is there already does nothing: it has the same bits.

    Raises:
      UserError: this or the previous write failed (a full disk, say).
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    items = _items(state)
    arrays = {
        name: [list(leaf.shape), str(leaf.dtype), _crc(leaf)]
        for name, leaf in _named_leaves(items)
    }
    try:
        manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(items["model"]),
                optimizer=ocp.args.StandardSave(items["optimizer"]),
                meta=ocp.args.JsonSave({"arrays": arrays, "extra": extra}),
            ),
        )
    except Exception as error:  # tensorstore reports a full disk in many types
        raise write_failed(manager, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until what ``save`` started is on disk.

    Raises:
      UserError: the write failed.
    """
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except Exception as error:
        raise write_failed(manager, error) from error


def write_failed(manager: ocp.CheckpointManager, error: Exception) -> UserError:
    """What to tell the user if ``error`` stopped a write beside the checkpoints."""
    free = shutil.disk_usage(manager.directory).free
    good = max(manager.all_steps(), default="none")
    reason = " ".join(str(error).split())[-200:]  # tensorstore names the cause last
    return UserError(
        f"cannot write in {manager.directory} ({free / 1e9:.1f} GB free): {reason}; "
        f"last good checkpoint: {good}; free some space and start the same command "
        "again"
    )


def check_space(folder: Path, state: TrainState, copies: int) -> None:
    """Raises UserError unless ``copies`` checkpoints of ``state`` fit on the disk."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(folder).free
    if free < size * copies:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB free; {copies} checkpoints of "
            f"{size / 1e9:.2f} GB do not fit: free space, choose another --workdir or "
            "lower config.keep"
        )


def restore_latest(
    manager: ocp.CheckpointManager, abstract: TrainState
) -> tuple[TrainState, dict] | None:
    """The newest intact checkpoint, or None if there is none at all.

    A damaged one is reported, set aside as ``STEP.corrupt``, and the one before it is
    tried.

    Args:
      manager: from ``open_folder``.
      abstract: a state of ``jax.ShapeDtypeStruct`` with the shardings to restore to;
        the checkpoint may come from any other number of devices or processes.

    Returns:
      The state and the ``extra`` given to ``save``.

    Raises:
      UserError: all are damaged, or one belongs to another model.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            items, extra = _restore(manager, step, _items(abstract))
        except UserError:
            raise
        except Exception as error:  # any of tensorstore's, json's or our own
            log.warning(
                "checkpoint %s/%d is damaged (%s): falling back to the one before",
                manager.directory,
                step,
                " ".join(str(error).split())[:200],
            )
            _set_aside(manager, step)
            continue
        model = items["model"]
        state = TrainState(
            step=jax.device_put(np.int32(step), abstract.step.sharding),
            params=model["params"],
            batch_stats=model["batch_stats"],
            opt_state=items["optimizer"],
        )
        return state, extra
    if steps:
        raise UserError(
            f"none of the checkpoints in {manager.directory} (steps {steps}) can be "
            "read; remove the folder to start from the beginning"
        )
    return None


def restore_model(
    folder: str | Path, step: int | None, abstract: dict
) -> tuple[dict, int, dict]:
    """The variables ``{"params", "batch_stats"}`` of one checkpoint, for inference.

    Args:
      folder: holds the checkpoint folders.
      step: which one; None: the newest.
      abstract: the variables as ``jax.ShapeDtypeStruct``, with shardings.

    Returns:
      Variables, step, and the ``extra`` given to ``save``.

    Raises:
      UserError: no such checkpoint, damaged, or of another model.
    """
    if not Path(folder).is_dir():
        raise UserError(f"no checkpoints in {folder}: train first, or check --workdir")
    with ocp.CheckpointManager(Path(folder).absolute()) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise UserError(f"no checkpoint in {folder} yet: train first")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {folder}; it has {steps}")
        step = steps[-1] if step is None else step
        try:
            items, extra = _restore(manager, step, {"model": abstract})
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"checkpoint {folder}/{step} is damaged "
                f"({' '.join(str(error).split())[:200]}); others there: "
                f"{[s for s in steps if s != step]}"
            ) from error
    return items["model"], step, extra


def _restore(manager, step: int, abstract: dict) -> tuple[dict, dict]:
    """Reads the items of ``abstract``, checks shapes before and CRCs after."""
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    meta = meta["meta"]
    expected = {name: leaf for name, leaf in _named_leaves(abstract)}
    found = {
        name: row
        for name, row in meta["arrays"].items()
        if name.partition("/")[0] in abstract
    }
    _check_same_model(f"{manager.directory}/{step}", expected, found)
    with warnings.catch_warnings():
        # Restoring on another topology is intended: the shardings are given.
        warnings.filterwarnings("ignore", message=".*[Ss]harding.*")
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    key: ocp.args.StandardRestore(value)
                    for key, value in abstract.items()
                }
            ),
        )
    items = {key: restored[key] for key in abstract}
    for name, leaf in _named_leaves(items):
        if _crc(leaf) != found[name][2]:
            raise ValueError(f"{name} does not match its checksum")
    return items, meta["extra"]


def _check_same_model(where: str, expected: dict, found: dict) -> None:
    """Raises UserError naming the first array that differs in name or shape."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise UserError(
                f"checkpoint {where} has no array {name}, which the model needs: it is "
                "of another model or config; use the config.json beside it"
            )
        if name not in expected:
            raise UserError(
                f"checkpoint {where} holds {name}, which the model does not have: it "
                "is of another model or config; use the config.json beside it"
            )
        have, want = tuple(found[name][0]), tuple(expected[name].shape)
        if have != want:
            raise UserError(
                f"checkpoint {where}: {name} has shape {have}, the model expects "
                f"{want}: it is of another model, class count or config; use the "
                "config.json beside it"
            )


def _set_aside(manager: ocp.CheckpointManager, step: int) -> None:
    if jax.process_index() == 0:
        source = Path(manager.directory) / str(step)
        target = source.with_name(f"{step}.corrupt")
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {step}")
    manager.reload()
