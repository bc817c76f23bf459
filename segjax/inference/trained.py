"""A trained model for use: ``load(workdir).predict(images)``."""

import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import checkpoint, models, sharding
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import batching, datasets, images, pipeline, windows
from segjax.errors import UserError
from segjax.inference import compiled, tiles
from segjax.inference.method import Method, compose
from segjax.inference.predictor import label_type
from segjax.ops import geometry, mean_field

log = logging.getLogger(__name__)

MAX_PIXELS = 2**22
"""Of an image predicted in one program, and of a device's part of a batch."""


class Trained(NamedTuple):
    """Models of the same classes with their variables, and how to predict with them."""

    models: tuple[nn.Module, ...]
    variables: tuple[dict, ...]
    steps: tuple[int, ...]  # of the checkpoints
    info: datasets.Dataset
    method: Method
    batch: int
    mesh: jax.sharding.Mesh
    programs: dict  # compiled so far

    def predict(
        self,
        images: Iterable[np.ndarray | str | os.PathLike],
        padding: float = batching.PADDING,
        max_pixels: float = MAX_PIXELS,
    ) -> list[np.ndarray]:
        """The class of every pixel of every image.

        Images of similar size share a compiled program and a batch; programs are kept
        for further calls.

        Args:
          images: paths, or arrays of 8 or 16 bit [H, W], [H, W, 1] or [H, W, 3] (RGB),
            of any sizes.
          padding: see ``batching.frames``; 0 predicts every image at its own size.
          max_pixels: larger images are predicted in windows or tiles.

        Returns:
          uint8 [H, W] for each image (uint16 for more than 255 classes).

        Raises:
          UserError: an image cannot be read, or is none.
        """
        return _predict(self, list(images), padding, max_pixels)


def load(
    path: str | os.PathLike,
    *others: str | os.PathLike,
    checkpoint: str = "best",
    method: Method | None = None,
    config: ConfigDict | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Trained:
    """Loads a model for prediction.

    Args:
      path: a workdir of experiments.train, or one of the checkpoints in it
        (``WORKDIR/checkpoints/1000``).
      others: more of the same classes; probabilities are averaged.
      checkpoint: "best", "latest" or a step, of workdirs.
      method: of prediction; None: as the config says (``tile``).
      config: of ``path``; None: the one saved there.
      mesh: whose devices work; None: those of this process.

    Raises:
      UserError: no such run or checkpoint, other classes, or a method that the models
        cannot do.
    """
    if mesh is None:
        mesh = sharding.make_mesh(jax.local_devices())
    found, infos, configs = [], [], []
    for given in (path, *others):
        workdir, which = _workdir(given, checkpoint)
        own = config if config is not None and not found else None
        configs.append(own or config_lib.load(workdir / "config.json"))
        infos.append(workdir_lib.read_dataset(workdir))
        have, want = infos[-1], infos[0]
        if (have.classes, have.channels) != (want.classes, want.channels):
            raise UserError(
                f"{given} was trained for other classes or channels than {path}; an "
                "ensemble needs the same"
            )
        found.append(load_model(configs[-1], workdir, infos[-1], which, mesh))
    networks, variables, steps = zip(*found)
    if method is None:
        method = Method(tile=configs[0].tile)
    compose(networks, method)  # says what cannot be combined
    batch = configs[0].eval_batch_size
    return Trained(networks, variables, steps, infos[0], method, batch, mesh, {})


def _workdir(path: str | os.PathLike, which: str) -> tuple[Path, str]:
    """The workdir and the checkpoint that a path names."""
    path = Path(path).expanduser().absolute()
    if path.name.isdigit() and (path.parent.parent / "config.json").is_file():
        return path.parent.parent, path.name
    return path, which


def program(
    trained: Trained,
    shape: Sequence[int],
    outputs: Sequence[str] = ("labels",),
    crf: mean_field.Settings | None = None,
) -> Any:
    """The compiled program of a shape (N, H, W): see ``compiled.compile_program``."""
    key = tuple(shape), tuple(outputs), crf
    if key not in trained.programs:
        trained.programs[key] = compiled.compile_program(
            compose(trained.models, trained.method),
            trained.variables,
            (*shape, trained.info.channels),
            trained.mesh,
            outputs,
            crf,
        )
    return trained.programs[key]


def window_program(trained: Trained, layout: tiles.Layout, batch: int) -> Any:
    """The compiled program of ``batch`` windows: images -> float32 probabilities."""
    key = batch, *layout.window
    if key not in trained.programs:
        run = compiled.compile_program(
            tiles.window_predictor(trained.models, trained.method),
            trained.variables,
            (*key, trained.info.channels),
            trained.mesh,
            ("scores",),
        )
        trained.programs[key] = lambda windows: run(windows)["scores"]
    return trained.programs[key]


def window_batch(
    trained: Trained, layout: tiles.Layout, max_pixels: float = MAX_PIXELS
) -> int:
    """How many windows one program predicts: within the limit on every device."""
    each = max(int(max_pixels // np.prod(layout.window)), 1)
    count, devices = len(layout.rows) * len(layout.columns), trained.mesh.size
    most = max(trained.batch // devices, 1)
    return devices * min(each, most, -(-count // devices))


def _predict(
    trained: Trained, given: list, padding: float, max_pixels: float
) -> list[np.ndarray]:
    channels = trained.info.channels

    def size_of(image: np.ndarray | str | os.PathLike) -> tuple[int, int]:
        if isinstance(image, np.ndarray):
            return image.shape[:2]
        return images.image_header(image)[0]

    def pixels_of(index: int) -> np.ndarray:
        if isinstance(given[index], np.ndarray):
            return images.to_pixels(given[index], channels, f"images[{index}]")
        return images.decode_image(given[index], channels)

    for index, image in enumerate(given):
        if isinstance(image, np.ndarray):  # all of them before any work
            images.to_pixels(image[:1], channels, f"images[{index}]")
    sizes = [size_of(image) for image in given]
    small = [i for i, (h, w) in enumerate(sizes) if h * w <= max_pixels]
    labels: list = [None] * len(given)
    devices = trained.mesh.size
    small_sizes = [sizes[i] for i in small]
    for bucket in batching.plan(
        small_sizes, trained.batch, padding, devices, max_pixels
    ):
        run = program(trained, (bucket.rows, *bucket.frame))
        for batch in bucket.batches:
            indices = [small[i] for i in batch]
            decoded = [pixels_of(i) for i in indices]
            found = run(stack(decoded, bucket))["labels"]
            for index, image, label in zip(indices, decoded, np.asarray(found)):
                labels[index] = label[: image.shape[0], : image.shape[1]].copy()
    for index in set(range(len(given))) - set(small):
        source = given[index]
        if isinstance(source, np.ndarray):
            size, read = sizes[index], windows.array_windows(source, channels)
        else:
            size, read = windows.open_windows(source, channels)
        label = np.empty(size, label_type(len(trained.info.classes)))
        top = 0
        for rows in stream(trained, read, size, max_pixels):
            label[top : top + len(rows)] = rows.argmax(-1)
            top += len(rows)
        labels[index] = label
    return labels


def stream(
    trained: Trained,
    read: windows.ReadWindow,
    size: tuple[int, int],
    max_pixels: float = MAX_PIXELS,
) -> Iterator[np.ndarray]:
    """Probabilities of a large image, row by row: see ``tiles.stream``."""
    layout = tiles.layout(trained.models, trained.method, size)
    batch = window_batch(trained, layout, max_pixels)
    run = window_program(trained, layout, batch)
    return tiles.stream(run, read, size, layout, batch)


def stack(images: Sequence[np.ndarray], bucket: batching.Bucket) -> np.ndarray:
    """A batch uint8 [rows, *frame, C]: images mirrored to the frame, then zeros."""
    channels = images[0].shape[2]
    batch = np.zeros((bucket.rows, *bucket.frame, channels), np.uint8)
    for row, image in zip(batch, images):
        row[:] = pipeline.mirror_to(image, bucket.frame)
    return batch


def load_model(
    config: ConfigDict,
    workdir: Path,
    info: datasets.Dataset,
    which: str,
    mesh: jax.sharding.Mesh,
) -> tuple[nn.Module, dict, int]:
    """The model of a workdir and the variables of one of its checkpoints.

    Args:
      config: of the run.
      workdir: of the run.
      info: its dataset.
      which: "best", "latest" or a step.
      mesh: whose devices get the variables.

    Returns:
      model, variables replicated on all devices, step.
    """
    model = models.build(config, len(info.classes))
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    images = jax.ShapeDtypeStruct((1, side, side, info.channels), np.uint8)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(lambda x: model.init(keys, x, train=True), images)
    place = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})},
    )
    folder, step = checkpoint.find(workdir, which)
    variables, _ = checkpoint.restore_model(folder, step, abstract)
    return model, variables, step


def fingerprint(variables: Any) -> str:
    """A CRC-32 of all arrays, to tell the weights of two runs apart."""
    crc = 0
    for leaf in jax.tree.leaves(variables):
        crc = zlib.crc32(np.ascontiguousarray(leaf.addressable_data(0)), crc)
    return f"{crc:08x}"
