"""The page of a comparison: tables, and images on which methods differ most."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.comparison import tables
from experiments.comparison.results import Data, Result
from experiments.shared import html
from segjax import labels, viz
from segjax.tables import Rows

VOID_COLOR = (255, 255, 255)
_WIDTH = 290  # smaller pictures are enlarged by a whole factor up to it


def page(
    results: Sequence[Result],
    *,
    data: Data,
    sections: Sequence[tables.Section],
    telling: Mapping[int, Sequence[tuple[int, int]]],
    scores: np.ndarray,
    problems: Sequence[str],
    figure: bytes,
    command: str,
) -> str:
    """One HTML page that needs no other file.

    Args:
      results: of the methods.
      data: the images.
      sections: the tables.
      telling: image -> (better, worse) methods, see ``pairs.telling_images``.
      scores: mIoU of single images [methods, images].
      problems: one line per run that is left out.
      figure: PNG of scores over costs.
      command: what made this page.
    """
    parts = []
    for title, line, rows in sections:
        best = tables.best(results) if title == "Classes" else []
        parts += [html.heading(title), html.paragraph(line, "lead")]
        parts.append(html.table(rows, numbers=_numbers(rows), best=best))
    if problems:
        parts += [html.heading("Runs that are left out"), html.items(problems)]
    parts += [html.heading("Scores over costs"), html.image(figure)]
    if telling:
        parts += [
            html.heading("Images on which methods differ most"),
            html.paragraph(
                "Image, truth, and every method's prediction of its first run with its "
                "mIoU on this image (mean over its runs).",
                "lead",
            ),
            html.legend(
                [*data.info.classes, "void (not scored)"],
                [*data.info.palette, VOID_COLOR],
            ),
        ]
    for image, leads in telling.items():
        parts += _pictures(image, leads, results, data=data, scores=scores)
    parts += [html.heading("Command"), html.commands(command)]
    names = ", ".join(result.name for result in results)
    return html.page(f"{names} on {data.info.name}", parts)


def _numbers(rows: Rows) -> list[bool]:
    """Columns of numbers: those whose values begin with a digit or a sign."""
    return [
        all(cell[:1].isdigit() or cell[:1] in "+-" for cell in column[1:])
        for column in zip(*rows)
    ]


def _pictures(
    image: int,
    leads: Sequence[tuple[int, int]],
    results: Sequence[Result],
    *,
    data: Data,
    scores: np.ndarray,
) -> list[html.Markup]:
    example = data.source[image]
    truth = viz.colorize(example["label"], data.info.palette)
    truth[example["label"] == labels.VOID] = VOID_COLOR
    # One channel is shown as gray, of more the first three.
    channels = 3 if example["image"].shape[-1] > 2 else 1
    picture = example["image"][..., :channels]
    columns = [np.broadcast_to(picture, truth.shape), truth]
    captions = ["image", "truth"]
    for result, score in zip(results, scores[:, image], strict=True):
        columns.append(viz.colorize(result.labels[image], data.info.palette))
        captions.append(f"{result.name} {100 * score:.1f}")
    zoom = max(1, _WIDTH // truth.shape[1])
    text = "; ".join(
        f"{results[a].name} {100 * (scores[a, image] - scores[b, image]):.1f} above "
        f"{results[b].name}"
        for a, b in leads
    )
    return [
        html.heading(f"{example['id']}: {text}", 3),
        html.pictures([html.image(x, zoom=zoom) for x in columns], captions),
    ]
