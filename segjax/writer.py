"""What a run leaves behind: JSON lines, TensorBoard scalars and pictures."""

import json
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class Writer:
    """Writes to ``workdir/metrics.jsonl`` and ``workdir/tensorboard``.

    A resumed run repeats the steps after its checkpoint; their earlier rows are
    removed, so that each step stands in the file once.
    """

    def __init__(self, workdir: Path, start: int):
        path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= start]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        part.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, flush_secs=10
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step} | {key: float(value) for key, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        for key, value in values.items():
            self._board.add_scalar(key, float(value), step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """``image``: uint8 [H, W, 3]."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict]:
    """The rows of ``metrics.jsonl``; a last line cut off by a kill is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
