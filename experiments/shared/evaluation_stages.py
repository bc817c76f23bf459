"""The stages of an evaluation: the plain model, the test-time protocol, the CRF.

All stages of an image are predicted in one pass, so that its scores show what each of
them brings. What is predicted is what ``experiments.predict`` would write.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from segjax import compilation, evaluators, inference, sharding
from segjax.data import datasets, pipeline, windows
from segjax.data.source import Example
from segjax.errors import UserError
from segjax.inference import large, predictors
from segjax.ops import mean_field

CHOICES = ("all", "last")
"""Which stages to score: values of the flag --stages."""

_GRID = 128  # sides of label maps are rounded up to it, so that few shapes compile


class Stage(NamedTuple):
    """One column of the results."""

    title: str
    """In tables and pictures: "model", "with flip, scales", "with CRF"."""
    key: str
    """Where its scores are in the results: "plain", "crf" or "", the top."""


class Pass(NamedTuple):
    """What is predicted of every image, and which of it is scored."""

    segmenters: tuple[inference.Segmenter, ...]
    """One for each stage before the CRF."""
    crf: mean_field.Settings | None
    stages: tuple[Stage, ...]
    """Those that are scored, the last of what is predicted."""


class ScoredImage(NamedTuple):
    """An image with the predictions of all stages, without padding."""

    index: int
    """In the source."""
    id: str
    image: np.ndarray
    """uint8 [H, W, C]."""
    label: np.ndarray
    """uint8 [H, W], 255 = void."""
    predictions: np.ndarray
    """Class ids [n, H, W], one map per stage."""
    confusion: np.ndarray
    """int [n, radius + 1, K, K]: see ``metrics.band_confusion``."""
    probabilities: tuple[np.ndarray, ...] = ()
    """float32 [H, W, K], one array per stage, if they were asked for."""
    instances: np.ndarray | None = None
    """uint16 [H, W], 0 = none, if the source has them."""


def make_pass(
    segmenter: inference.Segmenter, crf: mean_field.Settings | None, choice: str
) -> Pass:
    """The stages of a segmenter and a CRF.

    The plain model is a stage of its own if there is more than that: it predicts the
    image in one piece, or in the tiles that are asked for, which give the same.

    Args:
      segmenter: with the full protocol before the CRF.
      crf: None for none.
      choice: "all", or "last" for the last stage alone.
    """
    protocol = _protocol(segmenter)
    stages = [Stage("model", "plain")] if protocol else []
    segmenters = [_plain(segmenter)] if protocol else []
    stages.append(Stage(f"with {', '.join(protocol)}" if protocol else "model", ""))
    segmenters.append(segmenter)
    if crf:
        stages.append(Stage("with CRF", "crf"))
    if choice == "last":
        stages, segmenters = stages[-1:], segmenters[-1:]
    return Pass(tuple(segmenters), crf, tuple(stages))


def _protocol(segmenter: inference.Segmenter) -> list[str]:
    """The test-time options that change predictions, by name."""
    values, defaults = segmenter.options._asdict(), inference.PredictOptions()._asdict()
    names = [name for name in values if values[name] != defaults[name]]
    names += ["ensemble"] if len(segmenter.models) > 1 else []
    return [name for name in names if name not in _DETAILS]


_DETAILS = (
    *("tile", "stride", "scale_rule", "ensemble_rule"),
    *("proposal_rule", "proposal_method", "proposal_side"),
)
"""Options that change nothing alone: tiles equal the whole image."""


def _plain(segmenter: inference.Segmenter) -> inference.Segmenter:
    options = inference.PredictOptions(tile=segmenter.options.tile)
    return segmenter._replace(
        models=segmenter.models[:1],
        variables=segmenter.variables[:1],
        options=options,
        executables={},
        crops=segmenter.crops[:1],
        search=None,
    )


def check_parts(plan: Pass, source: datasets.Source, indices: Sequence[int]) -> None:
    """Raises UserError unless these images can be predicted in parts."""
    if indices and plan.crf:
        raise UserError(
            f"{len(indices)} images have more pixels than --max_pixels, the first is "
            f"{source[indices[0]]['id']}, and a CRF needs whole images: raise "
            "--max_pixels, or leave --crf out"
        )
    sizes = source.sizes
    for index in indices:
        for segmenter in plan.segmenters:
            try:
                large.layout(segmenter.models, segmenter.options, sizes[index])
            except UserError as error:
                raise UserError(f"{source[index]['id']}: {error}") from error


def make_step(plan: Pass, *, radius: int, keep: bool) -> Callable:
    """A function of images and labels on the devices, of all processes together.

    Args:
      plan: of the evaluation; all segmenters have the same mesh.
      radius: see ``metrics.band_confusion``.
      keep: also return probabilities.

    Returns:
      ``step(batch, image_sizes) -> (confusion [N, n, radius + 1, K, K], predictions
      [N, n, H, W], probabilities)``, the last a list of n arrays [N, H, W, K], or
      empty; ``image_sizes`` is ``sizes`` of ``inference.refine``.
    """
    *_, last = plan.segmenters
    mesh, split = last.mesh, sharding.split(last.mesh)
    run = []
    for segmenter in plan.segmenters:
        predictor = segmenter.predictor()
        predictor = compilation.precision(segmenter.precision)(predictor)
        run.append(jax.jit(predictor, out_shardings=split))
    score = evaluators.make_score(len(last.info.classes), radius)
    score = jax.jit(score, out_shardings=split)

    def step(
        batch: dict, image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        columns = [
            predict(segmenter.variables, *segmenter.inputs(batch))
            for predict, segmenter in zip(run, plan.segmenters)
        ]
        if plan.crf:
            columns.append(
                inference.refine(
                    columns[-1],
                    batch["image"],
                    settings=plan.crf,
                    mesh=mesh,
                    sizes=image_sizes,
                )
            )
        columns = columns[-len(plan.stages) :]
        return *score(batch["label"], *columns), columns if keep else []

    return step


def in_batches(
    step: Callable,
    source: datasets.Source,
    *,
    mesh: jax.sharding.Mesh,
    reading: dict,
) -> Iterator[ScoredImage]:
    """The images of this process that are predicted in one piece or one program.

    Args:
      step: of ``make_step``; all processes call it together.
      source: the same on every process.
      mesh: of all processes.
      reading: arguments of ``pipeline.eval_batches``.
    """
    sizes, (index, _) = source.sizes, reading["process"]
    limits = {name: reading[name] for name in ("padding", "max_pixels", "devices")}
    plan = pipeline.eval_plan(sizes, reading["batch_size"], **limits)
    batches = sharding.prefetch(pipeline.eval_batches(source, **reading), mesh)
    launched: collections.deque = collections.deque()

    def finished() -> Iterator[ScoredImage]:
        indices, batch, outputs = launched.popleft()
        confusion, predictions, columns = jax.tree.map(_local_rows, outputs)
        for row, i in enumerate(indices):
            h, w = sizes[i]
            instances = batch.get("instance")
            yield ScoredImage(
                index=i,
                id=str(batch["id"][row]),
                image=batch["image"][row, :h, :w],
                label=batch["label"][row, :h, :w],
                predictions=predictions[row, :, :h, :w],
                confusion=confusion[row],
                probabilities=tuple(column[row, :h, :w] for column in columns),
                instances=None if instances is None else instances[row, :h, :w],
            )

    for (_, indices), (batch, on_device) in zip(plan, batches, strict=True):
        share = len(batch["id"])
        own = indices[index * share : (index + 1) * share]
        own_sizes = [sizes[i] for i in own] + (share - len(own)) * [(0, 0)]
        launched.append((own, batch, step(on_device, own_sizes)))
        if len(launched) > 1:
            yield from finished()
    while launched:
        yield from finished()


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a split array that lie on the devices of this process, in order."""
    shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def in_parts(
    plan: Pass,
    source: datasets.Source,
    indices: Sequence[int],
    *,
    max_pixels: float,
    radius: int,
    keep: bool,
) -> Iterator[ScoredImage]:
    """Large images, in windows or tiles as by ``experiments.predict``.

    Each process predicts its own ones, on its own devices.

    Args:
      plan: of the evaluation.
      source: of the images.
      indices: of those of this process.
      max_pixels: see ``collection.plan``.
      radius: see ``metrics.band_confusion``.
      keep: also return probabilities, which are then held whole.
    """
    segmenters = [_alone(segmenter) for segmenter in plan.segmenters] if indices else []
    for index in indices:
        example = source[index]
        size = example["label"].shape
        labels, probabilities = [], []
        for segmenter in segmenters[-len(plan.stages) :]:
            classes = len(segmenter.info.classes)
            read = windows.array_windows(example["image"], segmenter.info.channels)
            label: np.ndarray = np.empty(size, predictors.label_type(classes))
            rows, top = [], 0
            for part in segmenter.stream(read, size, max_pixels=max_pixels):
                label[top : top + len(part)] = part.argmax(-1)
                top += len(part)
                if keep:
                    rows.append(part)
            labels.append(label)
            if keep:
                probabilities.append(np.concatenate(rows))
        yield score_image(
            example,
            np.stack(labels),
            index=index,
            classes=classes,
            radius=radius,
            probabilities=tuple(probabilities),
        )


def _alone(segmenter: inference.Segmenter) -> inference.Segmenter:
    """The same on the devices of this process."""
    if jax.process_count() == 1:
        return segmenter
    mesh = sharding.make_mesh(jax.local_devices())
    variables = jax.tree.map(
        lambda x: jax.device_put(x.addressable_data(0), sharding.replicated(mesh)),
        segmenter.variables,
    )
    return segmenter._replace(mesh=mesh, variables=variables, executables={})


def score_image(
    example: Example,
    predictions: np.ndarray,
    *,
    index: int,
    classes: int,
    radius: int,
    probabilities: tuple[np.ndarray, ...] = (),
) -> ScoredImage:
    """Scores the label maps [n, H, W] of an image on the first device."""
    label = example["label"]
    size = label.shape
    # A frame of void counts nowhere and has no boundary.
    around = [(0, -side % _GRID) for side in size]
    padded = np.pad(label, around, constant_values=datasets.VOID)
    maps = np.pad(predictions, [(0, 0), *around])
    confusion = _confusion(classes, radius)(padded[None], maps[None])
    return ScoredImage(
        index=index,
        id=str(example["id"]),
        image=example["image"],
        label=label,
        predictions=predictions,
        confusion=np.asarray(confusion)[0],
        probabilities=probabilities,
        instances=example.get("instance"),
    )


@functools.cache
def _confusion(classes: int, radius: int) -> Callable:
    return jax.jit(evaluators.make_confusion(classes, radius))
