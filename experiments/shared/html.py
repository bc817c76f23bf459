"""Self-contained HTML pages: text, tables, pictures and legends, all of it escaped.

Functions take plain text and return :data:`Markup`; only ``page`` joins it.  Pictures
are embedded, so that a page is one file that can be sent around.
"""

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NewType
from urllib.parse import quote

import cv2
import numpy as np

from segjax import files

Markup = NewType("Markup", str)  # escaped already

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff;
       max-width: 82em; margin: 0 auto; padding: 2em 1.5em 4em; }
h1 { font-size: 1.7em; margin: 0 0 .2em; }
h2 { font-size: 1.2em; margin: 2em 0 .6em; padding-bottom: .2em;
     border-bottom: 1px solid #dfe4ea; }
h3 { font-size: 1em; margin: 1.2em 0 .4em; }
a { color: #0b62a8; }
.lead, small, figcaption { color: #5b6875; }
.facts { display: flex; flex-wrap: wrap; gap: .8em; padding: 0; margin: 1.2em 0; }
.facts li { list-style: none; padding: .6em 1em; background: #f4f6f8;
            border-radius: 6px; }
.facts b { display: block; font-size: 1.5em; line-height: 1.3; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .7em; text-align: left; white-space: nowrap;
         border-bottom: 1px solid #e3e7ec; }
th { background: #f4f6f8; font-weight: 600; }
th.number, td.number { text-align: right; }
tr.bad td { background: #fff0e8; }
td.best { font-weight: bold; }
code, pre { font: 12.5px/1.6 ui-monospace, monospace; }
pre { background: #f4f6f8; border-radius: 6px; padding: .8em 1em; overflow-x: auto; }
img { max-width: 100%; height: auto; vertical-align: top; }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; margin: .8em 0; }
@media (max-width: 1270px) { .pictures:has(.pixels) { max-width: 600px; } }
figure { margin: 0; }
img.pixels { image-rendering: pixelated; max-width: none; }
.legend { display: flex; flex-wrap: wrap; gap: .3em 1.2em; margin: .8em 0; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .45em;
          border: 1px solid #9aa5b1; vertical-align: -.1em; }
"""


def page(title: str, parts: Iterable[Markup]) -> str:
    """A whole document."""
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            '<meta name=viewport content="width=device-width">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            heading(title, 1),
            *parts,
            "</html>\n",
        ]
    )


def heading(text: str, level: int = 2) -> Markup:
    """The title of a part of the page."""
    return Markup(f"<h{level}>{html.escape(text)}</h{level}>")


def paragraph(text: str, style: str = "") -> Markup:
    """Running text; ``style`` "lead" is gray."""
    return Markup(f"<p class={style or 'text'}>{html.escape(text)}</p>")


def items(texts: Iterable[str]) -> Markup:
    """A list."""
    rows = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return Markup(f"<ul>{rows}</ul>")


def facts(values: Mapping[str, str]) -> Markup:
    """A few large numbers: what they are -> the number."""
    rows = [
        f"<li><b>{html.escape(value)}</b>{html.escape(name)}</li>"
        for name, value in values.items()
    ]
    return Markup(f"<ul class=facts>{''.join(rows)}</ul>")


def commands(text: str) -> Markup:
    """Text as it is typed or printed."""
    return Markup(f"<pre>{html.escape(text)}</pre>")


def links(targets: Mapping[str, str]) -> Markup:
    """A list of links: relative path -> what is there."""
    rows = [
        f'<li><a href="{html.escape(quote(path))}">{html.escape(path)}</a>: '
        f"{html.escape(text)}</li>"
        for path, text in targets.items()
    ]
    return Markup(f"<ul>{''.join(rows)}</ul>")


def table(
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[bool],
    swatches: Sequence[Sequence[int]] = (),
    best: Iterable[tuple[int, int]] = (),
    bad: Iterable[int] = (),
) -> Markup:
    """A table.

    Args:
      rows: text of the cells, the titles first.
      numbers: for each column, whether it is right-aligned.
      swatches: for each row but the first, the RGB color shown in its first cell.
      best: (row, column) of the cells to emphasize, counted from below the titles.
      bad: rows to mark as incomplete, counted in the same way.
    """
    best, bad = set(best), set(bad)
    head, *body = rows
    marks = [_swatch(color) for color in swatches] or [""] * len(body)
    lines = [
        "".join(_cell("th", text, number=numbers[i]) for i, text in enumerate(head))
    ]
    for i, (row, mark) in enumerate(zip(body, marks, strict=True)):
        cells = []
        for j, text in enumerate(row):
            emphasis = (i, j) in best
            cells.append(
                _cell(
                    "td", text, number=numbers[j], mark="" if j else mark, best=emphasis
                )
            )
        lines.append("".join(cells))
    kinds = ["", *(" class=bad" if i in bad else "" for i in range(len(body)))]
    text = "\n".join(f"<tr{kind}>{line}</tr>" for kind, line in zip(kinds, lines))
    return Markup(f"<div class=wide><table>\n{text}\n</table></div>")


def _cell(
    tag: str, text: str, *, number: bool, mark: str = "", best: bool = False
) -> str:
    kinds = " ".join(["number"] * number + ["best"] * best)
    kind = f' class="{kinds}"' if kinds else ""
    return f"<{tag}{kind}>{mark}{html.escape(text)}</{tag}>"


def _swatch(color: Sequence[int]) -> str:
    red, green, blue = (int(value) for value in color)
    return f'<span class=swatch style="background:rgb({red},{green},{blue})"></span>'


def legend(classes: Sequence[str], palette: Iterable[Sequence[int]]) -> Markup:
    """Names of the classes beside their colors."""
    names = "".join(
        f"<span>{_swatch(color)}{html.escape(name)}</span>"
        for name, color in zip(classes, palette, strict=True)
    )
    return Markup(f"<div class=legend>{names}</div>")


def image_file(path: str | os.PathLike, *, zoom: int = 0) -> Markup:
    """A picture from a PNG or JPEG file; ``zoom`` as in ``image``."""
    kind = "png" if Path(path).suffix.lower() == ".png" else "jpeg"
    data = files.path(path).read_bytes()
    width = 0
    if zoom:
        width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1]
    return _image(data, kind=kind, width=zoom * width)


def image(picture: bytes | np.ndarray, *, zoom: int = 0) -> Markup:
    """A picture.

    Args:
      picture: PNG file, or uint8 [H, W, 3] RGB.
      zoom: screen pixels per pixel, each shown as a sharp square; 0: scaled to fit.
    """
    if isinstance(picture, bytes):
        return _image(picture, kind="png", width=0)
    data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    return _image(data, kind="png", width=zoom * picture.shape[1])


def _image(data: bytes, *, kind: str, width: int) -> Markup:
    code = base64.b64encode(data).decode()
    size = f" class=pixels width={width}" if width else ""
    return Markup(f'<img alt=""{size} src="data:image/{kind};base64,{code}">')


def pictures(images: Iterable[Markup], captions: Sequence[str] = ()) -> Markup:
    """Pictures beside each other, each under its caption if there are any."""
    figures = []
    for i, picture in enumerate(images):
        text = (
            f"<figcaption>{html.escape(captions[i])}</figcaption>" if captions else ""
        )
        figures.append(f"<figure>{text}{picture}</figure>")
    return Markup(f"<div class=pictures>{''.join(figures)}</div>")
