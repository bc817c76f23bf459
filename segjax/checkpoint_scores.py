"""Which checkpoints a run has, their scores, and which one a name means.

These functions only look at files; orbax is for :mod:`segjax.checkpoint`.
"""

import json
import logging
import shutil
from pathlib import Path

from segjax import buckets, files
from segjax import workdir as workdir_lib
from segjax.errors import UserError

log = logging.getLogger(__name__)

SCORE = "metrics/metrics"  # inside a checkpoint: where orbax looks for its metrics
_SCHEMA = {
    "type": "object",
    "required": ["miou"],
    "properties": {"miou": {"type": "number"}},
}


_COMMITTED = "commit_success.txt"  # orbax adds it last, where nothing can be renamed


def steps(folder: str | Path) -> list[int]:
    """Steps of the complete checkpoints in ``folder``, ascending."""
    folder = files.path(folder)
    if buckets.is_bucket(folder):
        names = [path.parent.name for path in folder.glob(f"*/{_COMMITTED}")]
    else:
        names = [path.name for path in folder.glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def written(folder: Path, step: int) -> float:
    """When a checkpoint was written, in seconds."""
    path = folder / str(step)
    return files.modified(path / _COMMITTED if buckets.is_bucket(path) else path)


def scores(folder: str | Path) -> dict[int, float]:
    """Validation mIoU of the checkpoints in ``folder`` that have been evaluated."""
    rows = {path: _read_score(path) for path in files.path(folder).glob(f"*/{SCORE}")}
    named = {path.parent.parent.name: score for path, score in rows.items()}
    return {
        int(name): score
        for name, score in named.items()
        if name.isdigit() and score is not None
    }


def _read_score(path: Path) -> float | None:
    """A validation mIoU; None if the file is damaged."""
    what = "the validation mIoU of a checkpoint"
    try:
        return float(files.read_json(path, what, _SCHEMA)["miou"])
    except UserError as error:
        log.warning("%s", error)
        return None


def tidy(workdir: Path) -> None:
    """Makes the checkpoints of a run ready for :func:`open_folder`.

    The best checkpoint of an earlier version moves to the others, with its score; what
    orbax could not read is removed: scores that are damaged.
    """
    folder = workdir / workdir_lib.CHECKPOINTS
    for path in folder.glob(f"*/{SCORE}"):
        if _read_score(path) is None:
            path.unlink()
    if earlier := _earlier_best(workdir):
        miou, step, best_folder = earlier
        target = folder / str(step)
        if not target.exists():
            folder.mkdir(exist_ok=True)
            (best_folder / str(step)).rename(target)
        (target / SCORE).parent.mkdir(exist_ok=True)
        files.write_json(target / SCORE, {"miou": miou}, indent=None)
        shutil.rmtree(best_folder)


def best(workdir: Path) -> tuple[Path, int, float] | None:
    """Folder, step and validation mIoU of the best checkpoint of a run; None: none.

    Among equal ones it is the newest, as for orbax.
    """
    folder = workdir / workdir_lib.CHECKPOINTS
    rows = [(miou, step, folder) for step, miou in scores(folder).items()]
    if earlier := _earlier_best(workdir):
        rows.append(earlier)
    if not rows:
        return None
    miou, step, folder = max(rows)
    return folder, step, miou


def _earlier_best(workdir: Path) -> tuple[float, int, Path] | None:
    """mIoU, step and folder of the best checkpoint as earlier versions kept it."""
    folder = workdir / workdir_lib.BEST
    there = steps(folder)
    if not there:
        return None
    step = there[-1]
    try:
        meta = json.loads((folder / str(step) / "meta" / "metadata").read_text())
        miou = float(meta["extra"]["miou"])
    except (OSError, ValueError, LookupError, TypeError):
        miou = -1.0  # it is read, and found damaged, if there is no other
    return miou, step, folder


def find(workdir: Path, which: str) -> tuple[Path, int]:
    """Folder and step of a checkpoint of a run.

    Args:
      workdir: of experiments.train.
      which: "best" (the latest if the run has not evaluated yet), "latest" or a step.

    Raises:
      UserError: no such checkpoint.
    """
    if which not in ("best", "latest") and not which.isdigit():
        raise UserError(f"--checkpoint={which}: expected 'best', 'latest' or a step")
    folder = workdir / workdir_lib.CHECKPOINTS
    if which == "best":
        if row := best(workdir):
            return row[0], row[1]
        log.warning("no best checkpoint in %s yet: taking the latest", workdir)
    earlier = _earlier_best(workdir)
    only_earlier = which.isdigit() and not (folder / which).is_dir()
    if only_earlier and earlier and earlier[1] == int(which):
        return earlier[2], earlier[1]
    there = steps(folder)
    if not there:
        raise UserError(f"no checkpoint in {folder} yet: train first")
    if which.isdigit() and int(which) not in there:
        raise UserError(f"no checkpoint of step {which} in {folder}; it has {there}")
    return folder, int(which) if which.isdigit() else there[-1]
