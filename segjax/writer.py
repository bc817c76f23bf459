"""What a run leaves behind: JSON lines, TensorBoard scalars and pictures."""

import json
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


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
        # Not SummaryWriter: its thread dies silently on a full disk, and then the
        # program waits for the thread for ever.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / "tensorboard" / "events"))
        # TensorBoard forgets the steps that a resumed run repeats.
        self._event(start + 1, file_version="brain.Event:2")
        self._event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content) -> None:
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step} | {key: float(value) for key, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        for key, value in values.items():
            self._event(step, summary=summary.scalar(key, float(value)))
        self._board.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """``image``: uint8 [H, W, 3]."""
        picture = summary.image(name, image, dataformats="HWC")
        self._event(step, summary=picture)

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
