"""Prepared records as a source of examples."""

import functools
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from segjax import files
from segjax.data import decoding
from segjax.data.images import decode_image
from segjax.data.source import Example, Size, check_split
from segjax.errors import UserError

HEADS = "heads.json"
"""The heads of the records of each split, so that no record is read for them."""


class Head(NamedTuple):
    """What is known of a record without decoding its image."""

    id: str
    size: Size
    checksum: int
    """CRC-32 of the decoded label: PNG encoders differ between versions."""
    identity: str = ""
    """What ``Source.identities`` says of it where it is read in place; "" if it never
    is."""


def head_of(record: Mapping[str, str | bytes]) -> Head:
    """The head of a record; decodes its label."""
    name, label = record["id"], record["label"]
    name = name.decode() if isinstance(name, bytes) else name
    assert isinstance(label, bytes)
    pixels = decode_image(label, 1, name)
    identity = record.get("identity", "")
    assert isinstance(identity, str)
    return Head(name, pixels.shape[:2], zlib.crc32(pixels.tobytes()), identity)


class RecordSource:
    """One split of prepared records, see ``prepare.prepare``.

    Unlike the data source of TFDS it decodes through ``decode_image``, leaves out
    features that are not needed, and pickles as a path (a builder would be made
    again, with its log messages, in every worker).
    """

    def __init__(
        self, directory: str, split: str, channels: int, *, instances: bool = False
    ):
        """Opens a split.

        Args:
          directory: of the records: DATA_DIR/NAME/KEY/VERSION.
          split: its name.
          channels: 3 (RGB) or 1 (gray).
          instances: whether examples hold the instance maps of the records.

        Raises:
          UserError: there is no such split, or the records are damaged.
        """
        self._state = (str(directory), split, channels, instances)
        self._open()

    def _open(self) -> None:
        # Imported on demand: TFDS takes a second.
        import tensorflow_datasets as tfds

        directory, split, self._channels, instances = self._state
        with self._reading():
            builder = tfds.builder_from_directory(directory)
            features = builder.info.features
        check_split(builder.name, split, builder.info.splits)
        self._instances = instances and "instance" in features
        images = [k for k in features if isinstance(features[k], tfds.features.Image)]
        with self._reading():
            self._records = builder.as_data_source(
                split, decoders={key: tfds.decode.SkipDecoding() for key in images}
            )
            self._length = len(self._records)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns whatever damaged records raise into one line."""
        try:
            yield
        except Exception as error:
            reason = (str(error).split("\n")[0] or type(error).__name__)[:200]
            raise UserError(
                f"{self._state[0]}: the prepared records are damaged ({reason}); "
                "remove this folder: the next start prepares them again"
            ) from error

    def _record(self, index: int) -> dict[str, bytes]:
        if not -self._length <= index < self._length:  # ends a loop over the source
            raise IndexError(f"{index} of {self._length} records")
        with self._reading():
            record = self._records[index]
            # Records of a truncated file come back without their features.
            if not all(record.get(key) for key in ("image", "label", "id")):
                raise ValueError(f"record {index} is empty")
        return record

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        record = self._record(index)
        name = record["id"].decode()
        example: Example = {
            "image": decode_image(record["image"], self._channels, name),
            "label": decode_image(record["label"], 1, name)[:, :, 0],
            "id": name,
        }
        if self._instances:  # 16 bits, which decode_image would reduce to 8
            example["instance"] = decoding.decode(record["instance"], name)
        return example

    @functools.cached_property
    def _heads(self) -> list[Head]:
        """Ids, sizes and checksums of the labels, as they were noted; or from these."""
        directory, split, *_ = self._state
        noted = Path(directory, HEADS)
        if noted.is_file():
            what = "the ids and sizes of prepared records"
            with self._reading():
                heads = files.read_json(noted, what).get(split, ())
                if len(heads) == len(self):
                    return [Head(name, (h, w), *rest) for name, (h, w), *rest in heads]
        return [head_of(self._record(index)) for index in range(len(self))]

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        return [head.size for head in self._heads]

    @property
    def identities(self) -> list[str]:
        """See ``Source``: as of the files, or id, size and a checksum of the label."""
        return [head.identity or json.dumps(head[:3]) for head in self._heads]

    def __getstate__(self) -> tuple[str, str, int, bool]:
        return self._state

    def __setstate__(self, state: tuple[str, str, int, bool]) -> None:
        self._state = state
        self._open()

    def __repr__(self) -> str:
        return f"RecordSource{self._state}"


def png_size(image: bytes) -> Size:
    """(H, W) of a PNG, from its header."""
    # Width and height are big-endian at bytes 16 and 20.
    return int.from_bytes(image[20:24]), int.from_bytes(image[16:20])
