"""Raw folders to array_record, once: what the builders of image and mask pairs share.

A prepared data set lives in ``DATA_DIR/NAME/KEY/VERSION``.  The key is a hash of the
names, sizes and times of the raw files, so that another folder or a changed file is
another data set and stale records are never read.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from segjax.errors import UserError

Record = dict[str, str | bytes]
"""One example: ``image`` and ``label`` (bytes of image files) and ``id``."""

Read = Callable[[], Mapping[str, Iterable[Record]]]
"""Checks all raw files, then returns the records of each split in order."""


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """``name`` is the key, ``read`` the source of the records."""

    read: Read = dict


class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images with label maps; subclasses set ``VERSION`` and ``CHANNELS``.

    Features: ``image`` uint8 [H, W, CHANNELS]; ``label`` uint8 [H, W, 1] train ids,
    255 = void; ``id`` text.
    """

    CHANNELS = 3

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, self.CHANNELS))
        label = tfds.features.Image(shape=(None, None, 1))
        features = {"image": image, "label": label, "id": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # records keep the order of the lists
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        splits = self.builder_config.read()
        return {name: self._generate_examples(made) for name, made in splits.items()}

    def _generate_examples(self, made: Iterable[Record]):
        # Encoded bytes, not arrays: TFDS would encode arrays with TensorFlow.
        yield from enumerate(made)


def key_of(root: Path, files: Iterable[Path]) -> str:
    """12 hex digits from the relative names, sizes and modification times of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        stat = path.stat()
        entry = f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(entry.encode())
    return digest.hexdigest()[:12]


def prepare(
    builder_class: type[Pairs], key: str, read: Read, data_dir: str
) -> tfds.core.DatasetBuilder:
    """Returns the prepared builder; writes the records if ``key`` is new.

    The records are written in a temporary folder, renamed at the end: a killed
    preparation leaves nothing that is mistaken for a data set, and of several
    processes that prepare the same data the first one to finish wins.  (TFDS has such
    a folder too, but names it through ``random``: processes that set the same
    ``random.seed`` would write to the same one.)

    Args:
      key: see ``key_of``.
      read: called only if ``key`` is new; raises UserError for bad files.
      data_dir: root of the prepared data.

    Raises:
      UserError: from ``read``, or nothing can be written to ``data_dir``.
    """

    def make(root: str) -> Pairs:
        config = Config(name=key, read=read)
        return builder_class(data_dir=root, config=config, file_format="array_record")

    root = os.path.expanduser(data_dir)
    with quiet():
        builder = make(root)
        try:
            if not builder.is_prepared():
                os.makedirs(builder.data_path.parent, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as own:
                    written = make(own)
                    written.download_and_prepare(file_format="array_record")
                    os.rename(written.data_path, builder.data_path)
        except OSError as error:
            # The rename fails where another process was faster.
            if not builder.is_prepared():
                raise UserError(
                    f"data.data_dir: {data_dir}: cannot write {builder.name} there "
                    f"({error.strerror or error}); expected a folder with write "
                    "permission and space for the records"
                ) from error
        # Made again to read what is there, whoever wrote it.
        return make(root)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS silent while it prepares.

    It prints banners to stdout (which a program may be using for its results), draws
    progress bars on stderr (control characters in the log files of a cluster) and logs
    a warning that our configs are custom, which they always are.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def check_each(check: Callable[..., None], items: Iterable[tuple]) -> None:
    """Calls ``check(*item)`` in threads; the first error in the order of items wins."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(check, *item) for item in items]:
            done.result()
