"""Records of TensorFlow Datasets as a source of examples."""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from segjax.data.images import decode_image
from segjax.data.masks import decode_mask, to_train_ids
from segjax.data.records import png_size
from segjax.data.source import Example, Size
from segjax.errors import UserError
from segjax.labels import VOID


class Features(NamedTuple):
    """Names of the features that are read."""

    image: str
    label: str
    id: str  # "" without one
    channels: int
    size: Size


@contextlib.contextmanager
def _reading(folder: Path | str) -> Iterator[None]:
    """Turns whatever damaged files raise into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
        raise UserError(
            f"{folder}: the records of TFDS cannot be read ({reason}); remove this "
            "folder and prepare them again"
        ) from error


def open_builder(folder: Path) -> Any:
    """The builder of TFDS, which reads what the files say of themselves."""
    import tensorflow_datasets as tfds

    with _reading(folder):
        builder = tfds.builder_from_directory(folder)
        file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{folder}: holds {file_format.value} files, which are only read with "
            "TensorFlow and have no random access; prepare them again as array_record: "
            f"tfds build {builder.name} --file_format=array_record"
        )
    return builder


class TfdsSource:
    """One split of a data set of TFDS: see ``Source``; it pickles as a path."""

    def __init__(
        self,
        folder: str,
        split: str,
        features: Features,
        table: Mapping[int, int],
        name: str,
    ):
        self._state = (folder, split, features, dict(table), name)
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        folder, split, _, _, name = self._state
        builder = open_builder(Path(folder))
        try:
            self._length = builder.info.splits[split].num_examples
        except Exception as error:  # of many types
            there = ", ".join(f"{k} ({s.num_examples})" for k, s in _splits(builder))
            raise UserError(
                f"--config.data: {name} has no split {split!r}; it has {there}, and "
                "parts of them, such as 'train[:90%]' and 'train[90%:]'"
            ) from error
        if not self._length:
            raise UserError(f"--config.data: the split {split!r} of {name} is empty")
        images = [
            key
            for key, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        ]
        with _reading(folder):
            self._records = builder.as_data_source(
                split, decoders={key: tfds.decode.SkipDecoding() for key in images}
            )

    def _record(self, index: int) -> tuple[str, bytes, bytes]:
        """Id, image and label map; encoded."""
        folder, split, features, _, _ = self._state
        if not 0 <= index < self._length:
            raise IndexError(index)
        with _reading(folder):
            record = self._records[index]
            image, label = record[features.image], record[features.label]
            if not image or not label:
                raise ValueError(f"record {index} is empty")
        name = f"{split}_{index:05d}"
        if features.id and record[features.id]:
            name = re.sub(r"\.\w{2,4}$", "", record[features.id].decode())
        return name, image, label

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        _, _, features, table, data_set = self._state
        name, image, label = self._record(index)
        where = f"{data_set}: {name}"
        pixels = decode_image(image, features.channels, where)
        ids = to_train_ids(
            decode_mask(label, where)[0],
            table,
            path=f"the label map of {name}",
            name=data_set,
            expected=_text(table),
        )
        if ids.shape != pixels.shape[:2]:
            raise UserError(
                f"{where}: label map is {ids.shape[0]}x{ids.shape[1]}, its image "
                f"{pixels.shape[0]}x{pixels.shape[1]} (height x width); expected equal "
                "sizes"
            )
        return {"image": pixels, "label": ids, "id": name}

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example, from the headers of the label maps."""
        if any(self._state[2].size):
            return [self._state[2].size] * len(self)
        return [png_size(self._record(i)[2]) for i in range(len(self))]

    @property
    def identities(self) -> list[str]:
        """See ``Source``: id, and a checksum of the label map as it is stored."""
        records = (self._record(i) for i in range(len(self)))
        return [json.dumps([name, zlib.crc32(label)]) for name, _, label in records]

    def __getstate__(self) -> tuple:
        return self._state

    def __setstate__(self, state: tuple) -> None:
        self._state = state
        self._open()

    def __repr__(self) -> str:
        return f"TfdsSource({self._state[0]!r}, {self._state[1]!r})"


def _splits(builder: Any) -> list[tuple[str, Any]]:
    return sorted(builder.info.splits.items())


def _text(table: Mapping[int, int]) -> str:
    """The values of a label map in words."""
    values = sorted(raw for raw, train_id in table.items() if train_id != VOID)
    return f"values from {values[0]} to {values[-1]}, or void"
