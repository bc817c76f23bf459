"""What an evaluation scores, from the data set to the files of the results."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import tqdm
from ml_collections import ConfigDict

from experiments.shared import cli, evaluation_images, evaluation_results
from experiments.shared.evaluation_stages import ScoredImage, Stage
from segjax import scoring
from segjax.data import datasets
from segjax.errors import UserError

TRIMAP_RADIUS = 40  # pixels, as in DeepLab
WORST = 4  # pictures of the worst images
_SIZES = 4  # of images that are named


class Scoring(NamedTuple):
    """What is scored, and how."""

    config: ConfigDict
    """Of the data, with the maps of instances if a metric needs them."""
    split: str
    source: datasets.Source
    info: datasets.Dataset
    metrics: dict[str, scoring.ImageMetric]
    radius: int
    """Of the bands around boundaries; 0 for none."""
    worst: int
    """How many pictures of the worst images."""

    @property
    def keep(self) -> bool:
        """Whether a metric needs probabilities."""
        return any("probabilities" in m.needs for m in self.metrics.values())


def open_scoring(
    config: ConfigDict,
    *,
    split: str = "",
    trimap: bool = False,
    metrics: Sequence[str] = (),
    worst: int = WORST,
) -> Scoring:
    """Opens the split and checks what is asked for.

    Raises:
      UserError: an unknown metric, one that these data cannot be scored by, or anything
        wrong with the data.
    """
    if worst < 0:
        raise UserError(f"--worst={worst}: expected 0 or more")
    chosen = evaluation_images.choose_metrics(
        metrics, datasets.describe(config.data).classes
    )
    if any("instances" in metric.needs for metric in chosen.values()):
        config = config.copy_and_resolve_references()
        config.data.instances = True
    split = split or config.data.eval_split
    source, info = datasets.load(config.data, split)
    radius = TRIMAP_RADIUS if trimap else 0
    return Scoring(config, split, source, info, chosen, radius, worst)


def finish(
    scored: Scoring,
    images: Iterable[ScoredImage],
    indices: Sequence[int],
    *,
    stages: Sequence[Stage],
    facts: dict,
    output: Path,
) -> dict:
    """Collects the images, writes the results and returns them.

    Args:
      scored: of the evaluation.
      images: of this process.
      indices: of the images of all processes together.
      stages: of the images.
      facts: of the predictions, for the results.
      output: folder.

    Raises:
      UserError: no pixel has a label, as in test splits of challenges.
    """
    config, source, info = scored.config, scored.source, scored.info
    cli.make_folder(output)
    bar = tqdm.tqdm(
        images,
        total=-(-len(indices) // jax.process_count()),
        desc=f"evaluate {scored.split}",
        unit="image",
        disable=jax.process_index() > 0,
    )
    collected = evaluation_images.collect(
        bar,
        indices,
        chosen=scored.metrics,
        classes=info.classes,
        shown=config.eval_images,
        worst=scored.worst,
        threads=config.threads,
    )
    if not collected.confusion.any():
        raise UserError(
            f"no pixel of the split {scored.split!r} of {info.name} has a label, so "
            "there is nothing to score; experiments.predict --split segments it"
        )
    sizes = sorted(set(source.sizes))
    results = {
        "dataset": info.name,
        "split": scored.split,
        "images": len(indices),
        "fingerprint": datasets.fingerprint(source),
        "image_size": sizes[:_SIZES],
        "image_sizes": len(sizes),
    } | facts
    scores = evaluation_results.results(
        collected, stages, info=info, chosen=scored.metrics
    )
    if "crf" in facts:
        scores["crf"] = facts["crf"] | scores["crf"]
    results |= scores
    first = jax.process_index() == 0
    if first:
        evaluation_results.write(
            output,
            scored.split,
            found=results,
            collected=collected,
            info=info,
            chosen=scored.metrics,
        )
    evaluation_results.write_pictures(
        output,
        scored.split,
        collected=collected,
        stages=stages,
        info=info,
        first=first,
    )
    return results
