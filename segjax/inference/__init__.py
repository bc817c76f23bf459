"""Prediction: class probabilities of images of any size."""

from segjax.inference.compiled import compile_predictor
from segjax.inference.crf import crf_settings, dense_crf, refine
from segjax.inference.options import PredictOptions, compose
from segjax.inference.predictors import (
    Predictor,
    ensemble,
    flip,
    multi_scale,
    overlap_tile,
    predict_labels,
    rotate,
    sliding,
    whole,
)
from segjax.inference.trained import Segmenter, load
from segjax.inference.windows import window_starts

__all__ = [
    "PredictOptions",
    "Predictor",
    "Segmenter",
    "compile_predictor",
    "compose",
    "crf_settings",
    "dense_crf",
    "ensemble",
    "flip",
    "load",
    "multi_scale",
    "overlap_tile",
    "predict_labels",
    "refine",
    "rotate",
    "sliding",
    "whole",
    "window_starts",
]
