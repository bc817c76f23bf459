"""Prediction: class probabilities of images of any size."""

from segjax.inference.predictor import (
    Predictor,
    flip,
    multi_scale,
    overlap_tile,
    predict_labels,
    sliding,
    whole,
    window_starts,
)

__all__ = [
    "Predictor",
    "flip",
    "multi_scale",
    "overlap_tile",
    "predict_labels",
    "sliding",
    "whole",
    "window_starts",
]
