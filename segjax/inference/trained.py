"""A trained model for use: ``load(workdir).predict(images)``."""

import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import checkpoint as checkpoints
from segjax import checkpoint_scores, files, models, sharding
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import batching, datasets, windows
from segjax.errors import UserError
from segjax.inference import collection, compiled, large, proposals
from segjax.inference.compiled import Executable
from segjax.inference.options import PredictOptions, compose, from_config
from segjax.inference.predictors import Predictor
from segjax.models.network import abstract_variables
from segjax.ops import filters, mean_field
from segjax.proposals import Settings as ProposalSettings
from segjax.proposals import check as check_proposals
from segjax.proposals import stored


class Segmenter(NamedTuple):
    """Models of the same classes with their variables, and how to predict with them."""

    models: tuple[nn.Module, ...]
    variables: tuple[dict, ...]
    steps: tuple[int, ...]
    """Steps of the checkpoints."""
    info: datasets.Dataset
    options: PredictOptions
    crf: mean_field.Settings | None
    """Refines the probabilities; None: no CRF."""
    resize: tuple[int, int]
    """(height, width) of every input, as in training; (0, 0): the image's own size."""
    value_range: tuple[int, int]
    """Of the images' values, as in training: see ``images.decode_image``."""
    precision: str
    """The precision of matrix products, see ``compilation.precision``."""
    batch_size: int
    """Maximum number of images per batch, over all devices."""
    mesh: jax.sharding.Mesh
    executables: dict
    """Compiled so far."""
    crops: tuple[tuple[int, int], ...]
    """(h, w) of the crops of objects that each model was trained on; (0, 0): whole
    images."""
    search: proposals.Search | None
    """Finds the regions of an image; None: there are no proposals."""

    def predictor(self) -> Predictor:
        """See ``options.compose``."""
        return compose(self.models, self.options, self.crops)

    @property
    def regions(self) -> int:
        """Rows of the regions of an image; 0 without proposals."""
        return 1 + self.search.number if self.search else 0

    def search_facts(self) -> dict[str, Any] | None:
        """What the regions depend on besides the options; None without proposals."""
        if not self.search:
            return None
        model = self.search.settings.edge_model
        return {"crops": self.crops, "edge_model": stored.model_hash(model)}

    def regions_of(self, image: np.ndarray) -> np.ndarray | None:
        """The regions of an input of the network; None without proposals."""
        return proposals.regions(image, self.search) if self.search else None

    def inputs(self, batch: Mapping[str, Any]) -> tuple:
        """What the predictor takes of a batch, behind the variables."""
        names = ("image", "regions") if self.search else ("image",)
        return tuple(batch[name] for name in names)

    def with_regions(self, source: datasets.Source) -> datasets.Source:
        """The source, its examples with regions if the predictor takes them."""
        return proposals.WithRegions(source, self.search) if self.search else source

    def predict(
        self,
        images: Iterable[np.ndarray | str | os.PathLike],
        *,
        padding: float = batching.PADDING,
        max_pixels: float = collection.MAX_PIXELS,
    ) -> list[np.ndarray]:
        """The class of every pixel of every image.

        Images of similar size share an executable and a batch; executables are kept
        for further calls. A model trained at ``config.data.resize`` gets images resized
        to it, and its probabilities are resized back.

        Args:
          images: paths, or arrays of 8 or 16 bit [H, W], [H, W, 1] or [H, W, 3] (RGB),
            or [H, W, C] for a model of C other channels, of any sizes. Values are
            those of the files: ``config.data.value_range`` is applied to them.
          padding: see ``batching.plan``; 0 predicts every image at its own size.
          max_pixels: larger images are predicted in windows or tiles.

        Returns:
          uint8 [H, W] for each image (uint16 for more than 255 classes).

        Raises:
          UserError: an image cannot be read, or is none.
        """
        plan = collection.plan(
            self, list(images), padding=padding, max_pixels=max_pixels
        )
        for error in plan.errors.values():
            raise error
        labels: list = [None] * len(plan.images)
        for result in collection.run(self, plan):
            if isinstance(result, collection.Failure):
                raise result.error
            label = collection.whole_label(result, len(self.info.classes))
            labels[result.image_index] = label
        return labels

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input for an image of that size."""
        return self.resize if any(self.resize) else (size[0], size[1])

    def executable(
        self, shape: Sequence[int], *, outputs: Sequence[str] = ("labels",)
    ) -> Executable:
        """The compiled predictor for (N, H, W): see ``compiled.compile_predictor``."""
        key = tuple(shape), tuple(outputs)
        if key not in self.executables:
            self.executables[key] = compiled.compile_predictor(
                self.predictor(),
                self.variables,
                shape=(*shape, self.info.channels),
                mesh=self.mesh,
                outputs=outputs,
                crf=self.crf,
                precision=self.precision,
                regions=self.regions,
            )
        return self.executables[key]

    def window_executable(self, layout: large.Layout, batch: int) -> Any:
        """The compiled predictor of windows: uint8 [batch, *window, C] -> scores."""
        key = batch, *layout.window
        if key not in self.executables:
            self.executables[key] = compiled.compile_predictor(
                large.window_predictor(self.models, self.options),
                self.variables,
                shape=(*key, self.info.channels),
                mesh=self.mesh,
                outputs=("scores",),
                precision=self.precision,
            )
        run = self.executables[key]
        return lambda windows: run(windows)["scores"]

    def window_batch(
        self, layout: large.Layout, max_pixels: float = collection.MAX_PIXELS
    ) -> int:
        """How many windows are predicted at once: within the limit on every device."""
        per_device = max(int(max_pixels // np.prod(layout.window)), 1)
        count, devices = len(layout.starts), self.mesh.size
        limit = max(self.batch_size // devices, 1)
        return devices * min(per_device, limit, -(-count // devices))

    def stream(
        self,
        read: windows.ReadWindow,
        size: tuple[int, int],
        *,
        max_pixels: float = collection.MAX_PIXELS,
    ) -> Iterator[np.ndarray]:
        """Probabilities of a large image, row by row: see ``large.stream``."""
        layout = large.layout(self.models, self.options, size)
        batch = self.window_batch(layout, max_pixels)
        run = self.window_executable(layout, batch)
        return large.stream(run, read, layout=layout, batch=batch)


def load(
    path: str | os.PathLike,
    *others: str | os.PathLike,
    checkpoint: str = "best",
    options: PredictOptions | None = None,
    crf: mean_field.Settings | None = None,
    config: ConfigDict | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Segmenter:
    """Loads a model for prediction.

    Args:
      path: a workdir of experiments.train, or one of the checkpoints in it
        (``WORKDIR/checkpoints/1000``).
      others: more models of the same classes; probabilities are averaged.
      checkpoint: "best", "latest" or a step, of paths that are workdirs.
      options: how to predict; None: as the config says (``tile``).
      crf: refines the probabilities; None: no CRF.
      config: of ``path``; None: the one saved there.
      mesh: whose devices work; None: those of this process.

    Raises:
      UserError: no such run or checkpoint, models that cannot be averaged, or options
        that the models cannot do.
    """
    if mesh is None:
        mesh = sharding.make_mesh(jax.local_devices())
    loaded: list[tuple] = []
    infos: list[datasets.Dataset] = []
    configs: list[ConfigDict] = []
    for member in (path, *others):
        workdir, which = _workdir(member, checkpoint)
        first = config if config is not None and not loaded else None
        configs.append(first or config_lib.load(workdir / "config.json"))
        infos.append(workdir_lib.read_dataset(workdir))
        _check_same(member, path, infos=(infos[-1], infos[0]), configs=configs)
        loaded.append(
            load_model(configs[-1], workdir, info=infos[-1], which=which, mesh=mesh)
        )
    networks, variables, steps = zip(*loaded)
    if options is None:
        options = from_config(configs[0])
    crops = tuple(proposals.crop_of(one) for one in configs)
    compose(networks, options, crops)  # says what cannot be combined
    search = _search(options, configs[0], crops) if options.proposals else None
    if search:
        check_proposals(search.settings, infos[0].channels)
    if crf is not None:
        filters.check_colors(infos[0].channels)
    resize = tuple(configs[0].data.resize)
    if any(resize) and min(resize) < 1:
        raise UserError(
            f"--config.data.resize: found {resize}, expected a height and a width, or "
            "0,0 to keep the sizes of the images"
        )
    return Segmenter(
        models=networks,
        variables=variables,
        steps=steps,
        info=infos[0],
        options=options,
        crf=crf,
        resize=resize,
        value_range=tuple(configs[0].data.value_range),
        precision=configs[0].precision,
        batch_size=configs[0].eval_batch_size,
        mesh=mesh,
        executables={},
        crops=crops,
        search=search,
    )


def _search(
    options: PredictOptions, config: ConfigDict, crops: Sequence[tuple[int, int]]
) -> proposals.Search:
    least = min(side for crop in crops if any(crop) for side in crop)
    return proposals.Search(
        settings=ProposalSettings(
            method=options.proposal_method, edge_model=config.data.edge_model
        ),
        folder=stored.folder_of(config.data.data_dir),
        number=options.proposals,
        least=math.ceil(options.proposal_side * least),
    )


def _check_same(
    member: str | os.PathLike,
    first: str | os.PathLike,
    *,
    infos: tuple[datasets.Dataset, datasets.Dataset],
    configs: Sequence[ConfigDict],
) -> None:
    """Raises UserError unless a member of an ensemble fits the first one."""
    own, info = infos
    if (own.classes, own.channels) != (info.classes, info.channels):
        raise UserError(
            f"{member} was trained for other classes or channels than {first}; an "
            "ensemble needs the same"
        )
    for field in ("resize", "value_range"):
        values = [tuple(config.data[field]) for config in (configs[-1], configs[0])]
        if values[0] != values[1]:
            raise UserError(
                f"{member} was trained at --config.data.{field}={values[0]}, {first} "
                f"at {values[1]}; the models of an ensemble need the same"
            )


def _workdir(path: str | os.PathLike, which: str) -> tuple[Path, str]:
    """The workdir and the checkpoint that a path names."""
    path = files.absolute(path)
    if path.name.isdigit() and (path.parent.parent / "config.json").is_file():
        return path.parent.parent, path.name
    return path, which


def load_model(
    config: ConfigDict,
    workdir: Path,
    *,
    info: datasets.Dataset,
    which: str,
    mesh: jax.sharding.Mesh,
) -> tuple[nn.Module, dict, int]:
    """The model of a workdir and the variables of one of its checkpoints.

    Args:
      config: of the run.
      workdir: of the run.
      info: its data set.
      which: "best", "latest" or a step.
      mesh: whose devices get the variables.

    Returns:
      model, variables replicated on all devices, step.

    Raises:
      UserError: no such checkpoint, or one of another model.
    """
    model = models.build(config, len(info.classes))
    replicated = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        abstract_variables(model, info.channels),
    )
    folder, step = checkpoint_scores.find(workdir, which)
    variables, _ = checkpoints.restore_model(folder, step, abstract)
    return model, variables, step


def fingerprint(variables: Any) -> str:
    """A CRC-32 of all arrays, to tell the weights of two runs apart."""
    crc = 0
    for leaf in jax.tree.leaves(variables):
        whole = np.ascontiguousarray(leaf.addressable_data(0))
        crc = zlib.crc32(whole.view(np.uint8).data, crc)
    return f"{crc:08x}"
