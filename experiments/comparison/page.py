"""The page of a comparison: tables, and images on which methods differ most."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.comparison import pictures, tables
from experiments.comparison.results import Data, Result
from experiments.shared import html
from segjax.tables import Rows

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
    photos: bool,
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
      photos: False leaves images and their truth out.
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
                f"{'Image, truth, and every' if photos else 'Every'} method's "
                "prediction of its first run, with its mIoU on this image (mean over "
                "its runs).",
                "lead",
            ),
            html.legend(
                [*data.info.classes, "void (not scored)"],
                [*data.info.palette, pictures.VOID_COLOR],
            ),
        ]
    for image, leads in telling.items():
        parts += _pictures(
            image, leads, results, data=data, scores=scores, photos=photos
        )
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
    photos: bool,
) -> list[html.Markup]:
    columns = pictures.row(image, results, data=data, photos=photos)
    captions = ["image", "truth"] * photos + [
        f"{result.name} {100 * score:.1f}"
        for result, score in zip(results, scores[:, image], strict=True)
    ]
    zoom = max(1, _WIDTH // columns[0].shape[1])
    text = "; ".join(
        f"{results[a].name} {100 * (scores[a, image] - scores[b, image]):.1f} above "
        f"{results[b].name}"
        for a, b in leads
    )
    return [
        html.heading(f"{data.source[image]['id']}: {text}", 3),
        html.pictures([html.image(x, zoom=zoom) for x in columns], captions),
    ]
