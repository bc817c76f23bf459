"""Numbers of a collection that was predicted."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.shared import prediction_folder
from segjax import inference
from segjax.inference import collection


def padding(segmenter: inference.Segmenter, plan: collection.Plan) -> float:
    """Computed pixels over those of the inputs, less 1: padding and empty rows."""
    computed = sum(
        group.batch_size * math.prod(group.padded_shape) * len(group.batches)
        for group in plan.groups
    )
    inputs = sum(
        math.prod(segmenter.input_size(plan.sizes[index]))
        for group in plan.groups
        for batch in group.batches
        for index in batch
    )
    return computed / inputs - 1 if inputs else 0.0


def shares(
    results: prediction_folder.PredictionFolder, names: Sequence[str]
) -> dict[str, float]:
    """Share of the pixels of every class, over all images that are done."""
    counts = [results.done[name]["pixels"] for name in names if name in results.done]
    total = np.sum(counts, axis=0) if counts else np.zeros(len(results.info.classes))
    shares = total / max(total.sum(), 1)
    return dict(zip(results.info.classes, shares.tolist(), strict=True))
