"""What a run leaves behind: JSON lines, TensorBoard scalars and pictures.

tensorboardX is imported on demand, because it imports PyTorch where that is installed.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from segjax import buckets, files
from segjax.line_file import UPLOAD_SECONDS
from segjax.workdir import METRICS, TENSORBOARD, read_metrics

EVENTS_BYTES = 4 << 20
"""Larger files of TensorBoard are followed by another one, and not uploaded again."""


class Writer:
    """Writes to ``workdir/metrics.jsonl`` and ``workdir/tensorboard``.

    A resumed run repeats the steps after its checkpoint, and the evaluation of the
    checkpoint if that was interrupted; their earlier rows are removed, so that each
    step stands in the file once.

    Objects of a bucket cannot be appended to.  Those files are kept on this machine,
    and uploaded while training runs and whenever :meth:`sync` is called.
    """

    def __init__(self, workdir: Path, start: int, *, evaluated: bool = True):
        from tensorboardX.proto.event_pb2 import SessionLog

        self._bucket = workdir if buckets.is_bucket(workdir) else None
        self._folder = workdir
        if self._bucket:
            self._temporary = tempfile.TemporaryDirectory()
            self._folder = Path(self._temporary.name)
        path = self._folder / METRICS
        rows = [
            row
            for row in read_metrics(workdir)
            if row["step"] < start
            or (row["step"] == start and (evaluated or "loss" in row))
        ]
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", buffering=1)
        (self._folder / TENSORBOARD).mkdir(exist_ok=True)
        self._parts = 0
        self._open_board()
        # TensorBoard forgets the steps that a resumed run repeats.
        self._event(start + 1, file_version="brain.Event:2")
        self._event(start + 1, session_log=SessionLog(status=SessionLog.START))
        self.sync()

    def _open_board(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        # Not SummaryWriter: its thread dies silently on a full disk, and then the
        # program waits for the thread for ever.
        suffix = f".{self._parts}" if self._parts else ""
        prefix = self._folder / TENSORBOARD / "events"
        self._board = EventsWriter(str(prefix), suffix)

    def sync(self) -> None:
        """Uploads the log files, if they are those of a bucket.

        Raises:
          UserError: the bucket cannot be written to.
        """
        if not self._bucket:
            return
        self._board.flush()
        buckets.upload(self._folder / METRICS, self._bucket / METRICS)
        for path in list((self._folder / TENSORBOARD).iterdir()):
            buckets.upload(path, self._bucket / TENSORBOARD / path.name)
            if path.stat().st_size > EVENTS_BYTES:
                self._board.close()
                path.unlink()
                self._parts += 1
                self._open_board()
        self._uploaded = time.monotonic()

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
        if self._bucket and time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self.sync()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """``image``: uint8 [H, W, 3]."""
        from tensorboardX import summary

        picture = summary.image(name, image, dataformats="HWC")
        self._event(step, summary=picture)

    def close(self) -> None:
        self._file.close()
        self.sync()
        self._board.close()
        if self._bucket:
            self._temporary.cleanup()
