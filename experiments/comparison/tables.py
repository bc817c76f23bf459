"""The tables of a comparison: rows, and the files that are tables."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.comparison.pairs import CONFIDENCE, Pair
from experiments.comparison.results import Data, Result
from experiments.shared.tables import mean_and_deviation, mean_text, number_text
from segjax import metrics
from segjax.published_scores import Score
from segjax.tables import Rows, markdown_table, text_table

_MEAN = metrics.SCORES["miou"].title


def scores_of(result: Result, name: str) -> np.ndarray:
    """A score of metrics.SCORES of every run, 0 to 1."""
    return np.array([run.scores[name] for run in result.runs])


def class_means(result: Result) -> list[float]:
    """IoU of each class, mean over the runs; NaN for classes that are absent."""
    return [
        mean_and_deviation(values)[0]
        for values in np.stack([run.classes for run in result.runs], axis=1)
    ]


def class_rows(results: Sequence[Result], data: Data) -> Rows:
    """IoU of every class and their mean in percent, a row per method."""
    rows = [("method", *data.info.classes, _MEAN)]
    for result in results:
        classes = [number_text(100 * iou, "{:.1f}") for iou in class_means(result)]
        mean = mean_text(100 * scores_of(result, "miou"))
        rows.append((result.name, *classes, mean))
    return rows


def best(results: Sequence[Result]) -> list[tuple[int, int]]:
    """The highest numbers of ``class_rows``: (row, column) below the titles."""
    table = [
        [*class_means(result), mean_and_deviation(scores_of(result, "miou"))[0]]
        for result in results
    ]
    # As they are printed: equal numbers are all best.
    shown = np.round(100 * np.nan_to_num(np.array(table), nan=-1), 1)
    highest = shown.max(axis=0)
    return [(i, j + 1) for i, j in np.argwhere((shown == highest) & (shown >= 0))]


def cost_rows(results: Sequence[Result], data: Data) -> Rows:
    """Scores over all classes, and costs, a row per method."""
    names = [score.title for score in metrics.SCORES.values()]
    rows = [
        ("method", "network", "runs", "step", *(f"{name} %" for name in names))
        + ("parameters", "GFLOPs", "images/s")
    ]
    for result in results:
        steps = dict.fromkeys(str(run.step) for run in result.runs)
        rows.append(
            (result.name, result.costs.network, str(len(result.runs)))
            + (", ".join(steps),)
            + tuple(mean_text(100 * scores_of(result, x)) for x in metrics.SCORES)
            + (
                number_text(result.costs.parameters, "{:,.0f}"),
                number_text(result.costs.flops / 1e9, "{:,.3g}"),
                number_text(result.rate, "{:,.1f}"),
            )
        )
    return rows


def pair_rows(results: Sequence[Result], pairs: Sequence[Pair]) -> Rows:
    """Differences in mIoU of single images, in percent, a row per pair."""
    interval = f"{CONFIDENCE:.0%} interval".replace("%", " %")
    rows = [("method", "minus", "difference", interval, "better", "worse", "equal")]
    for pair in pairs:
        numbers = [
            number_text(100 * value, "{:+.1f}")
            for value in (pair.mean, pair.low, pair.high)
        ]
        rows.append(
            (results[pair.first].name, results[pair.second].name, numbers[0])
            + (f"{numbers[1]} .. {numbers[2]}",)
            + tuple(str(x) for x in (pair.better, pair.worse, pair.equal))
        )
    return rows


def published_rows(scores: Sequence[Score], data: Data) -> Rows:
    """Published scores in percent, a row per method; classes only if one has them."""
    classes = data.info.classes if any(score.classes for score in scores) else ()
    rows = [("published", "split", *classes, _MEAN, "source", "with")]
    for score in scores:
        ious = score.classes or (math.nan,) * len(classes)
        rows.append(
            (score.method, score.split)
            + tuple(number_text(iou, "{:.1f}") for iou in ious)
            + (_printed(score.miou), score.source, score.note or "-")
        )
    return rows


def _printed(percent: float) -> str:
    """With one or two decimals, as papers print it."""
    return f"{percent:.2f}".removesuffix("0")


PUBLISHED = (
    "Published scores of this data set, of the split, size and training data that each "
    "row says, by the protocol of its authors: they do not compare with the rows above "
    "unless all of these agree."
)
PAIRS = (
    "Differences in mIoU of single images, in percent (mean over the images and over "
    "the seeds), with the bootstrap interval over the images; on how many images the "
    "first method is better, worse and equal. The mean of the mIoU of single images is "
    "another number than the mIoU of all pixels together."
)


class Section(NamedTuple):
    """A table."""

    title: str
    line: str  # what it shows
    rows: Rows


def sections(
    results: Sequence[Result],
    *,
    data: Data,
    pairs: Sequence[Pair],
    published: Sequence[Score],
    facts: str,
    costs_note: str,
) -> list[Section]:
    """All tables of a comparison."""
    parts = [
        Section("Classes", facts, class_rows(results, data)),
        Section("Scores and costs", costs_note, cost_rows(results, data)),
    ]
    if pairs:
        parts.append(Section("Differences", PAIRS, pair_rows(results, pairs)))
    if published:
        rows = published_rows(published, data)
        parts.append(Section("Published", PUBLISHED, rows))
    return parts


def text(parts: Sequence[Section]) -> str:
    """compare.txt, which is also printed."""
    return "\n\n".join(f"{p.line}\n\n{text_table(p.rows)}" for p in parts) + "\n"


def markdown(parts: Sequence[Section]) -> str:
    """compare.md."""
    tables = [
        f"{p.line}\n\n{markdown_table([[_cell(x) for x in row] for row in p.rows])}"
        for p in parts
    ]
    return "\n\n".join(tables) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def comma_separated(
    results: Sequence[Result], *, data: Data, published: Sequence[Score]
) -> str:
    """compare.csv: all numbers, unrounded, scores 0 to 1; empty where unknown."""
    classes = data.info.classes
    names = ["kind", "method", "network", "split", "runs", "images"]
    scores = [*metrics.SCORES, *(f"iou_{name}" for name in classes)]
    names += [f"{name}_{part}" for name in scores for part in ("mean", "std")]
    names += ["parameters", "flops", "image_height", "image_width"]
    names += ["images_per_second", "workdirs", "source", "note"]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    for result in results:
        values: dict[str, Any] = {
            "kind": "measured",
            "method": result.name,
            "network": result.costs.network,
            "split": data.split,
            "runs": len(result.runs),
            "images": len(data.source),
            "parameters": result.costs.parameters,
            "flops": result.costs.flops,
            "image_height": data.size[0],
            "image_width": data.size[1],
            "images_per_second": result.rate,
            "workdirs": " ".join(str(run.run.workdir) for run in result.runs),
        }
        columns = {name: scores_of(result, name) for name in metrics.SCORES}
        for index, name in enumerate(classes):
            ious = [run.classes[index] for run in result.runs]
            columns[f"iou_{name}"] = np.array(ious)
        for name, column in columns.items():
            values[f"{name}_mean"], values[f"{name}_std"] = mean_and_deviation(column)
        writer.writerow(_known(values))
    for score in published:
        values = {"kind": "published", "method": score.method, "split": score.split}
        values |= {"miou_mean": score.miou / 100}
        for name, iou in zip(classes, score.classes):
            values[f"iou_{name}_mean"] = iou / 100
        values |= {"source": score.source, "note": score.note}
        writer.writerow(_known(values))
    return file.getvalue()


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: "" if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


# LaTeX

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Text as LaTeX shows it."""
    text = re.sub(r"[\\~^&%$#_{}]", lambda match: _SPECIAL[match[0]], text)
    return text.replace("±", r"$\pm$")


def latex(
    results: Sequence[Result], *, data: Data, published: Sequence[Score], facts: str
) -> str:
    """compare.tex: IoU of the classes and their mean, with the packages booktabs and
    graphicx; the best of what was measured is bold."""
    head, *body = class_rows(results, data)
    bold = set(best(results))
    columns = len(head)
    titles = [rf"\rotatebox{{90}}{{{escape(name)}}}" for name in head[1:-1]]
    lines = [
        f"% {' '.join(facts.split())}",
        r"% \usepackage{booktabs,graphicx}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 2)}c}}",
        r"\toprule",
        " & ".join([escape(head[0]), *titles, escape(head[-1])]) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(body):
        cells = [escape(row[0])]
        for j, text in enumerate(row[1:], 1):
            cell = escape(text) if text != "-" else "--"
            cells.append(rf"\textbf{{{cell}}}" if (i, j) in bold else cell)
        lines.append(" & ".join(cells) + r" \\")
    if published:
        lines += [
            r"\midrule",
            rf"\multicolumn{{{columns}}}{{l}}{{\emph{{published, on other splits, "
            r"sizes or training data}} \\",
        ]
    for score in published:
        ious = score.classes or (math.nan,) * (columns - 2)
        name = ", ".join(filter(None, (score.method, score.split, score.note)))
        cells = [escape(f"{name} ({score.source})")]
        cells += [number_text(iou, "{:.1f}").replace("-", "--") for iou in ious]
        lines.append(" & ".join([*cells, _printed(score.miou)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


# JSON


def json_values(
    results: Sequence[Result],
    *,
    data: Data,
    pairs: Sequence[Pair],
    published: Sequence[Score],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """compare.json: all numbers of every run, scores 0 to 1, null where unknown."""

    def methods() -> list[dict[str, Any]]:
        return [
            {
                "name": result.name,
                **result.costs._asdict(),
                "images_per_second": result.rate,
                "runs": [
                    {
                        "workdir": str(run.run.workdir),
                        "step": run.step,
                        "scores": run.scores,
                        "classes": dict(zip(data.info.classes, run.classes.tolist())),
                        "image_miou": run.images.tolist(),
                    }
                    for run in result.runs
                ],
            }
            for result in results
        ]

    values = {
        "dataset": data.info.name,
        "split": data.split,
        "images": len(data.source),
        "fingerprint": data.fingerprint,
        "image_size": data.size,
        **facts,
        "methods": methods(),
        "pairs": [
            pair._asdict()
            | {
                "first": results[pair.first].name,
                "second": results[pair.second].name,
            }
            for pair in pairs
        ],
        "published": [score._asdict() for score in published],
    }
    return _null(values)


def _null(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
