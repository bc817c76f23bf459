"""A text file that grows by lines, on a disk or in a bucket."""

import time
from pathlib import Path

from segjax import buckets

UPLOAD_SECONDS = 10
"""Between two uploads: a bucket limits how often an object changes."""


class LineFile:
    """Adds lines to a file.

    Objects of a bucket cannot be appended to: such a file is written again as a whole,
    after a while and when :meth:`sync` is called.
    """

    def __init__(self, path: Path):
        self.path = path
        self._text = b""
        self._uploaded = time.monotonic()
        if buckets.is_bucket(path) and path.exists():
            self._text = buckets.read_bytes(path)

    def add(self, line: str) -> None:
        """Adds a line; ``line`` has none of its own ends.

        Raises:
          OSError: the disk takes no more.
          UserError: the bucket cannot be written to.
        """
        if not buckets.is_bucket(self.path):
            with open(self.path, "a") as file:
                file.write(line + "\n")
            return
        self._text += line.encode() + b"\n"
        if time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Uploads what has been added; raises as ``add``."""
        if buckets.is_bucket(self.path):
            buckets.write_bytes(self.path, self._text)
            self._uploaded = time.monotonic()
