"""The files of prepared records: shards as array_record, and the metadata of TFDS.

TensorFlow itself is not used.  TFDS takes a second to import, so this module is
imported only where records are written.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from segjax.data.layout import Format, Record


class ShardSize(NamedTuple):
    """What a file of records holds."""

    records: int
    bytes: int


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would look for the data set in a bucket of its own, and
        leave an empty folder behind."""


def features_of(form: Format) -> tfds.features.FeaturesDict:
    """The features of a format, as TFDS describes them."""
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
    return tfds.features.FeaturesDict(features)


def encoder(form: Format) -> Callable[[Record], bytes]:
    """The function that makes the bytes of a record.

    Records hold encoded images, not arrays: TFDS would encode arrays with TensorFlow.
    """
    features = features_of(form)
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())

    def encode(record: Record) -> bytes:
        example = serializer.get_tf_example(features.encode_example(record))
        # The same bytes in every process: features come in an order of their own.
        return example.SerializeToString(deterministic=True)

    return encode


@contextmanager
def open_shard(path: Path) -> Iterator[ArrayRecordWriter]:
    """A writer of one file of records, closed at the end.

    Raises:
      OSError: the file cannot be written, such as on a full disk.
    """
    try:
        # As TFDS writes them: every record is found by itself.
        # Images are compressed by their own formats, or not at all: see frames.py.
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:  # the writer has no type of its own for it
        match = re.search(r"\w+\(\) failed: ([^;]+);", str(error))
        if match is None:
            raise
        known = {os.strerror(number): number for number in errno.errorcode}
        raise OSError(known.get(match[1], errno.EIO), match[1], str(path)) from error


def write_metadata(
    folder: Path,
    form: Format,
    *,
    key: str,
    splits: Mapping[str, list[ShardSize]],
) -> None:
    """Writes ``dataset_info.json`` and ``features.json``.

    Args:
      folder: to write to.
      form: of the records.
      key: name of the TFDS config.
      splits: the files of each split, in order.
    """
    identity = tfds.core.DatasetIdentity(
        name=form.name,
        version=tfds.core.Version(form.version),
        data_dir=os.fspath(folder),
        module_name="",  # no code is needed to read them
        config_name=key,
    )
    info = _Info(
        builder=identity,
        features=features_of(form),
        disable_shuffling=True,  # records keep the order of the lists
    )
    info.set_file_format("array_record")
    info.set_splits(
        tfds.core.SplitDict(
            [
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=[shard.records for shard in shards],
                    num_bytes=sum(shard.bytes for shard in shards),
                    filename_template=tfds.core.ShardedFileTemplate(
                        data_dir=tfds.core.Path(folder),
                        dataset_name=form.name,
                        split=name,
                        filetype_suffix="array_record",
                    ),
                )
                for name, shards in splits.items()
            ]
        )
    )
    info.write_to_directory(folder)
