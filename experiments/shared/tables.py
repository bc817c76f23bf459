"""Summaries of models as the rows of tables, and numbers of several seeds."""

import math
from collections.abc import Mapping

import numpy as np

from segjax.analysis.receptive_field import Field
from segjax.analysis.summary import Summary
from segjax.analysis.tracing import LOGITS
from segjax.tables import Rows


def layer_rows(numbers: Summary) -> Rows:
    """One row per layer."""
    titles = "layer, kernel, output, parameters, MACs, computed, stride, field"
    rows = [tuple(titles.split(", "))]
    for layer in numbers.layers:
        kernel = "x".join(map(str, layer.kernel))
        rate = f" rate {layer.dilation}" if layer.dilation > 1 else ""
        rows.append(
            (
                layer.name,
                kernel + rate,
                "x".join(map(str, layer.output[1:])) or "training only",
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                f"{layer.computed_macs:,}",
                stride_text(layer.stride),
                field_text(layer.receptive_field),
            )
        )
    return rows


def map_rows(numbers: Summary) -> Rows:
    """One row per endpoint, and the logits."""
    rows = [("output", "shape", "stride", "field")]
    for name, x in (*numbers.endpoints.items(), (LOGITS, numbers.logits)):
        shape = "x".join(map(str, x.shape[1:]))
        field = field_text(x.receptive_field)
        rows.append((name, shape, stride_text(x.stride), field))
    return rows


def total_rows(numbers: Summary) -> Rows:
    """What belongs to the whole model."""
    height, width, channels = numbers.image
    return [
        ("model", numbers.model),
        ("image", f"{height}x{width}x{channels}"),
        ("output", "x".join(map(str, numbers.logits.shape[1:]))),
        ("margin", "{}, {} px".format(*numbers.margin)),
        ("output stride", stride_text(numbers.output_stride)),
        ("receptive field", field_text(numbers.logits.receptive_field)),
        ("parameters", f"{numbers.parameters:,}"),
        ("batch statistics", f"{numbers.statistics:,}"),
        ("MACs", f"{numbers.macs:,}"),
        ("FLOPs (2 x MACs)", f"{numbers.flops:,}"),
        ("MACs of fixed resizing", f"{numbers.fixed_macs:,}"),
        ("MACs computed", f"{numbers.computed_macs:,}"),
        ("activations in training", f"{numbers.activation_bytes / 2**20:,.1f} MiB"),
    ]


def model_rows(summaries: Mapping[str, Summary]) -> Rows:
    """One row per model."""
    titles = "model, image, output, parameters, GMACs, GFLOPs, GMACs computed, stride, "
    titles += "field, activations"
    rows = [tuple(titles.split(", "))]
    for name, x in summaries.items():
        rows.append(
            (
                name,
                "x".join(map(str, x.image)),
                "x".join(map(str, x.logits.shape[1:3])),
                f"{x.parameters:,}",
                f"{x.macs / 1e9:,.1f}",
                f"{x.flops / 1e9:,.1f}",
                f"{x.computed_macs / 1e9:,.1f}",
                stride_text(x.output_stride),
                field_text(x.logits.receptive_field),
                f"{x.activation_bytes / 2**20:,.0f} MiB",
            )
        )
    return rows


def stride_text(stride: float) -> str:
    """Image rows: 8, or global."""
    return "global" if stride == math.inf else f"{stride:g}"


def field_text(field: Field) -> str:
    """Rows of the image: 404, 188..204 (smallest and largest) or global."""
    if math.inf in field:
        return "global"
    return f"{field[0]}" if field[0] == field[1] else f"{field[0]}..{field[1]}"


def number_text(value: float, form: str) -> str:
    """The formatted number; "-" for NaN."""
    return "-" if math.isnan(value) else form.format(value)


def mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of what is known; NaN: of too few values."""
    known = values[~np.isnan(values)]
    mean = np.mean(known) if len(known) else math.nan
    return float(mean), float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def mean_text(percent: np.ndarray) -> str:
    """ "81.7 ± 0.4"; one value has no deviation."""
    mean, deviation = mean_and_deviation(percent)
    text = number_text(mean, "{:.1f}")
    return text if math.isnan(deviation) else f"{text} ± {deviation:.1f}"
