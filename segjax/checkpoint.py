"""Checkpoints: the only file that knows orbax.

A checkpoint is a folder named by its step with three items: ``model`` (params and
batch_stats, all that inference needs), ``optimizer`` (opt_state) and ``meta`` (JSON:
the shape, dtype and CRC-32 of every array, and what the caller adds).  Orbax writes
it under a temporary name and renames it when complete, or adds a file in a bucket that
says so: a kill at any moment leaves the previous ones.  The CRCs find damage that the
file format would not.

A checkpoint is saved before it is evaluated.  Its validation mIoU is added afterwards
as orbax's own item ``metrics``, from which orbax knows which checkpoint to preserve as
the best one.  Earlier versions kept the best checkpoint in a second folder, ``best``;
:mod:`segjax.checkpoint_scores` reads it, and moves it to the others.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax import buckets, checkpoint_scores, files
from segjax.errors import Unavailable, UserError
from segjax.training import TrainState

if TYPE_CHECKING:  # importing it takes 0.3 s, which no --help should wait for
    import orbax.checkpoint as ocp

log = logging.getLogger(__name__)


def open_folder(folder: str | Path, keep: int) -> ocp.CheckpointManager:
    """A manager of the checkpoints in ``folder``.

    The newest ``keep`` are preserved, and the one with the highest validation mIoU.
    """
    from orbax.checkpoint import checkpoint_managers

    policies = [
        checkpoint_managers.LatestN(n=keep),
        checkpoint_managers.BestN(
            get_metric_fn=_miou, n=1, keep_checkpoints_without_metrics=False
        ),
    ]
    return _open(
        folder,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        create=True,
        cleanup_tmp_directories=True,
    )


def _open(folder: str | Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager, which does not ask whether the job is being preempted.

    Training asks, in every step, and counts these questions; another one that counts
    differently could make two processes stop at different steps.
    """
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        def reached_preemption(self, step: int) -> bool:
            del step
            return False

    if buckets.is_bucket(folder):
        buckets.silence_arrays(buckets.bucket_of(folder))
    return Manager(
        files.absolute(folder), options=ocp.CheckpointManagerOptions(**options)
    )


def _miou(metrics: dict) -> float:
    return metrics["miou"]


def add_score(manager: ocp.CheckpointManager, step: int, miou: float) -> None:
    """Notes the validation mIoU of a checkpoint, once it is on the disk.

    Raises:
      UserError: the checkpoint could not be written.
    """
    finish(manager)
    if jax.process_index() == 0:
        path = files.path(manager.directory) / str(step) / checkpoint_scores.SCORE
        path.parent.mkdir(exist_ok=True)
        # Without a valid pixel there is no mIoU: any other checkpoint is better.
        value = miou if np.isfinite(miou) else -1.0
        files.write_json(path, {"miou": float(value)}, indent=None)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"score {step}")
    manager.reload()


def _items(state: TrainState) -> dict:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    return {"model": model, "optimizer": state.opt_state}


def _named_leaves(tree) -> Iterable[tuple[str, jax.Array]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _crc(array: jax.Array) -> int:
    if array.is_fully_replicated:  # any one shard is the whole array
        whole = np.asarray(array.addressable_data(0))
    else:  # one array at a time: of all of them, a host may not have the memory
        whole = multihost_utils.process_allgather(array, tiled=True)
    return zlib.crc32(np.ascontiguousarray(whole).view(np.uint8).data)


def _meta_crc(arrays: dict, extra: dict) -> int:
    return zlib.crc32(json.dumps([arrays, extra], sort_keys=True).encode())


def save(
    manager: ocp.CheckpointManager, state: TrainState, extra: dict | None = None
) -> None:
    """Starts writing ``state`` as the checkpoint of its step (asynchronously).

    Saving a step that is there already does nothing: it has the same bits.

    Args:
      manager: from ``open_folder``.
      state: on all devices; the same call by all processes.
      extra: JSON values to keep with it.

    Raises:
      UserError: this or the previous write failed (a full disk, say).
    """
    import orbax.checkpoint as ocp

    step = int(state.step)
    if step in manager.all_steps():
        return
    items = _items(state)
    arrays = {
        name: [list(leaf.shape), str(leaf.dtype), _crc(leaf)]
        for name, leaf in _named_leaves(items)
    }
    meta: dict[str, Any] = {"arrays": arrays, "extra": extra or {}}
    meta["crc"] = _meta_crc(**meta)
    try:
        manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(items["model"]),
                optimizer=ocp.args.StandardSave(items["optimizer"]),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
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
    good = max(manager.all_steps(), default="none")
    reason = " ".join(str(error).split())[-200:]  # tensorstore names the cause last
    if buckets.is_bucket(manager.directory):
        return Unavailable(
            f"cannot write in {manager.directory}: {reason}; last good checkpoint: "
            f"{good}; start the same command again to continue"
        )
    free = shutil.disk_usage(manager.directory).free
    return UserError(
        f"cannot write in {manager.directory} ({free / 1e9:.1f} GB free): {reason}; "
        f"last good checkpoint: {good}; free some space and start the same command "
        "again"
    )


def check_space(folder: Path, state: TrainState, copies: int) -> None:
    """Raises UserError unless ``copies`` checkpoints of ``state`` fit on the disk."""
    if buckets.is_bucket(folder):
        return
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
      UserError: all are damaged, one belongs to another model, or the bucket did not
        answer.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            items, extra = _restore(manager, step, _items(abstract))
        except UserError:
            raise
        except Exception as error:  # any of tensorstore's, json's or our own
            _raise_if_unreachable(manager, step, error)
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


def _raise_if_unreachable(
    manager: ocp.CheckpointManager, step: int, error: Exception
) -> None:
    """Raises UserError if a bucket did not answer: its checkpoint may be intact."""
    told = buckets.explain(error, f"{manager.directory}/{step}")
    if told and buckets.is_bucket(manager.directory):
        raise told from error


def restore_model(folder: str | Path, step: int, abstract: dict) -> tuple[dict, dict]:
    """The variables ``{"params", "batch_stats"}`` of one checkpoint, for inference.

    Args:
      folder: holds the checkpoint folders, see :func:`find`.
      step: which one.
      abstract: the variables as ``jax.ShapeDtypeStruct``, with shardings.

    Returns:
      Variables, and the ``extra`` given to ``save``.

    Raises:
      UserError: the checkpoint is damaged, or of another model.
    """
    # Steps and scores are not needed, so that damaged ones do no harm.
    with _open(folder, lightweight_initialize=True, create=False) as manager:
        try:
            items, extra = _restore(manager, step, {"model": abstract})
        except UserError:
            raise
        except Exception as error:
            _raise_if_unreachable(manager, step, error)
            others = sorted(set(manager.all_steps()) - {step})
            raise UserError(
                f"checkpoint {folder}/{step} is damaged "
                f"({' '.join(str(error).split())[:200]}); others there: {others}"
            ) from error
    return items["model"], extra


def _restore(manager, step: int, abstract: dict) -> tuple[dict, dict]:
    """Reads the items of ``abstract``, checks shapes before and CRCs after."""
    import orbax.checkpoint as ocp

    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    meta = meta["meta"]
    # Checkpoints of earlier versions have no checksum of the description itself.
    if meta.get("crc", None) not in (None, _meta_crc(meta["arrays"], meta["extra"])):
        raise ValueError("its description does not match its checksum")
    expected = {name: leaf for name, leaf in _named_leaves(abstract)}
    saved = {
        name: row
        for name, row in meta["arrays"].items()
        if name.partition("/")[0] in abstract
    }
    _check_same_model(f"{manager.directory}/{step}", expected, saved)
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
        if _crc(leaf) != saved[name][2]:
            raise ValueError(f"{name} does not match its checksum")
    return items, meta["extra"]


def _check_same_model(where: str, expected: dict, saved: dict) -> None:
    """Raises UserError naming the first array that differs in name or shape."""
    for name in sorted(expected.keys() | saved.keys()):
        if name not in saved:
            raise UserError(
                f"checkpoint {where} has no array {name}, which the model needs: it is "
                "of another model or config; use the config.json beside it"
            )
        if name not in expected:
            raise UserError(
                f"checkpoint {where} holds {name}, which the model does not have: it "
                "is of another model or config; use the config.json beside it"
            )
        saved_shape = tuple(saved[name][0])
        expected_shape = tuple(expected[name].shape)
        if saved_shape != expected_shape:
            raise UserError(
                f"checkpoint {where}: {name} has shape {saved_shape}, the model "
                f"expects {expected_shape}: it is of another model, class count or "
                "config; use the config.json beside it"
            )


def _set_aside(manager: ocp.CheckpointManager, step: int) -> None:
    if jax.process_index() == 0:
        source = files.path(manager.directory) / str(step)
        target = source.with_name(f"{step}.corrupt")
        files.remove_folder(target)
        files.move_folder(source, target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {step}")
    manager.reload()
