"""The TFDS builder that writes and describes prepared records.

TensorFlow itself is not used.  TFDS takes a second to import, so this module is
imported only where records are written.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from segjax.data.layout import Format
from segjax.data.prepare import Read


@dataclasses.dataclass
class _Config(tfds.core.BuilderConfig):
    """``name`` is the key, ``read`` the source of the records."""

    read: Read = dict


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would look for the data set in a bucket of its own, and
        leave an empty folder behind."""


def write(form: Format, *, key: str, read: Read, root: str) -> tfds.core.DatasetBuilder:
    """Writes records in ``root/NAME/KEY/VERSION``.

    Args:
      form: name, version and features of the records.
      key: name of the config.
      read: checks the raw files and returns the records of each split.
      root: an empty folder.

    Returns:
      The builder, prepared.
    """
    gray = (None, None, 1)
    features = {
        "image": tfds.features.Image(shape=(None, None, form.channels)),
        "label": tfds.features.Image(shape=gray),
        "id": tfds.features.Text(),
    }
    for name in form.maps:
        features[name] = tfds.features.Image(
            shape=gray, dtype=np.uint16, encoding_format="png"
        )

    class Builder(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = form.name
        VERSION = tfds.core.Version(form.version)

        def _info(self):
            return _Info(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # records keep the order of the lists
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing is downloaded
            return {
                split: self._generate_examples(records)
                for split, records in self.builder_config.read().items()
            }

        def _generate_examples(self, records):
            # Encoded bytes, not arrays: TFDS would encode arrays with TensorFlow.
            yield from enumerate(records)

    with _quiet():
        config = _Config(name=key, read=read)
        builder = Builder(data_dir=root, config=config, file_format="array_record")
        builder.download_and_prepare(file_format="array_record")
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
