"""What a run leaves behind: JSON lines, TensorBoard scalars and pictures.

tensorboardX is imported on demand, because it imports PyTorch where that is installed.
"""

import json
import time
from pathlib import Path

import numpy as np

from segjax import files
from segjax.workdir import METRICS, TENSORBOARD, read_metrics


class Writer:
    """Writes to ``workdir/metrics.jsonl`` and ``workdir/tensorboard``.

    A resumed run repeats the steps after its checkpoint, and the evaluation of the
    checkpoint if that was interrupted; their earlier rows are removed, so that each
    step stands in the file once.
    """

    def __init__(self, workdir: Path, start: int, *, evaluated: bool = True):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        path = workdir / METRICS
        rows = [
            row
            for row in read_metrics(workdir)
            if row["step"] < start
            or (row["step"] == start and (evaluated or "loss" in row))
        ]
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", buffering=1)
        # Not SummaryWriter: its thread dies silently on a full disk, and then the
        # program waits for the thread for ever.
        (workdir / TENSORBOARD).mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / TENSORBOARD / "events"))
        # TensorBoard forgets the steps that a resumed run repeats.
        self._event(start + 1, file_version="brain.Event:2")
        self._event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._board.write_event(Event(wall_time=time.time(), step=step, **content))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX import summary

        row = {"step": step} | {key: float(value) for key, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        for key, value in values.items():
            self._event(step, summary=summary.scalar(key, float(value)))
        self._board.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """``image``: uint8 [H, W, 3]."""
        from tensorboardX import summary

        picture = summary.image(name, image, dataformats="HWC")
        self._event(step, summary=picture)

    def close(self) -> None:
        self._file.close()
        self._board.close()
