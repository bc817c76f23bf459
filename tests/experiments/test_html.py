"""HTML pages: what is escaped, what pictures hold, and the page of the quickstart."""

import base64
import html.parser
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from experiments import quickstart
from experiments.shared import html as pages
from segjax import config as config_lib
from segjax import viz
from segjax.data import datasets

EVIL = "<b a=\"1\" c='2'>&amp;"
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, decoded images, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "html"):
            self.open.append(tag)
        if tag == "img":
            code = dict(attrs)["src"].partition("base64,")[2]
            data = np.frombuffer(base64.b64decode(code), np.uint8)
            self.images.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])

    def handle_endtag(self, tag):
        assert tag == "html" or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize(
    "make",
    [
        lambda text: pages.page(text, []),
        lambda text: pages.heading(text, 3),
        lambda text: pages.paragraph(text),
        lambda text: pages.items([text, "x"]),
        lambda text: pages.facts({text: text}),
        lambda text: pages.commands(text),
        lambda text: pages.links({text: text}),
        lambda text: pages.table([[text], [text]], numbers=[True]),
        lambda text: pages.table(
            [["a"], [text]], numbers=[False], swatches=[(1, 2, 3)]
        ),
        lambda text: pages.legend([text], np.zeros((1, 3), np.uint8)),
        lambda text: pages.pictures([pages.image(PICTURE)], [text]),
    ],
)
def test_text_is_escaped(make):
    plain, evil = Page(make("text")), Page(make(EVIL))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in evil.tags]
    assert [attrs.keys() for _, attrs in plain.tags] == [
        attrs.keys() for _, attrs in evil.tags
    ]
    assert EVIL in evil.text and not evil.open


def test_pictures_hold_the_pixels_and_are_enlarged_by_whole_factors(tmp_path):
    path = tmp_path / "p.PNG"
    Image.fromarray(PICTURE).save(path)
    for markup, width in (
        (pages.image(PICTURE, zoom=3), "18"),
        (pages.image(PICTURE), None),
        (pages.image(path.read_bytes()), None),
        (pages.image_file(path), None),
        (pages.image_file(path, zoom=2), "12"),
    ):
        page = Page(markup)
        ((_, attrs),) = page.tags
        np.testing.assert_array_equal(page.images[0], PICTURE)
        assert attrs.get("width") == width
        assert attrs.get("class") == ("pixels" if width else None)
        assert attrs["src"].startswith("data:image/png;")
    assert "image-rendering: pixelated" in pages.page("t", [])


def test_cells_of_a_table():
    rows = [["name", "a", "b"], ["x", "1", "2"], ["y", "3", "4"]]
    markup = pages.table(
        rows,
        numbers=[False, True, True],
        best=[(1, 2)],
        bad=[0],
        swatches=[(1, 2, 3)] * 2,
    )
    page = Page(markup)
    kinds = [attrs.get("class") for attrs in page.named("td")]
    assert kinds == [None, "number", "number", None, "number", "number best"]
    assert [attrs.get("class") for attrs in page.named("tr")] == [None, "bad", None]
    assert len(page.named("span")) == 2
    assert page.text.split() == ["".join(row) for row in rows]


def test_links_are_paths():
    (attrs,) = Page(pages.links({"a b/c?.json": "what"})).named("a")
    assert attrs["href"] == "a%20b/c%3F.json"


def test_page_of_the_quickstart(tmp_path):
    """Every pixel of image, truth, prediction and errors; every class; no gaps."""
    info = datasets.describe({"name": "scenes"})
    rng = np.random.default_rng(0)
    source = [
        {
            "image": rng.integers(0, 256, (16, 24, 3), np.uint8),
            "label": rng.integers(0, 9, (16, 24), np.uint8),
        }
        for _ in range(2)
    ]
    predictions = [np.copy(example["label"]) for example in source]
    source[0]["label"][:4] = 255  # void is never wrong
    predictions[0][8:, :12] = (predictions[0][8:, :12] + 1) % 9
    folder = tmp_path / "predictions" / "labels"
    folder.mkdir(parents=True)
    for i, label in enumerate(predictions):
        picture = Image.fromarray(label)
        picture.putpalette(info.palette.tobytes())
        picture.save(folder / f"{i}.png")
    (tmp_path / "evaluation").mkdir()
    figure = viz.confusion_figure(np.eye(9), info.classes)
    (tmp_path / "evaluation" / "validation_confusion.png").write_bytes(figure)
    rows = [{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "val_miou": 0.5}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    classes = {
        name: {"iou": i / 10, "accuracy": None, "frequency": 0.125}
        for i, name in enumerate(info.classes)
    }
    results = {"split": "validation", "step": 7, "images": 2, "classes": classes}
    results["scores"] = {"miou": 0.7251, "pixel_accuracy": 0.9}
    results["majority_baseline"] = {"miou": 0.0301}

    page = Page(
        quickstart._page(
            config_lib.make(), tmp_path, results=results, info=info, source=source
        )
    )
    assert not page.open
    for text in (
        "72.5 %",
        "90.0 %",
        "3.0 %",
        "unet on scenes",
        "33.3 % wrong",
        "0.0 %",
    ):
        assert text in page.text
    for i, name in enumerate(info.classes):
        assert f"{name}{10 * i}.0 %-12.5 %" in page.text.replace("\n", "")
    colors = info.palette
    image, truth, prediction, errors = page.images[:4]
    np.testing.assert_array_equal(image, source[0]["image"])
    np.testing.assert_array_equal(prediction, colors[predictions[0]])
    np.testing.assert_array_equal(truth[4:], colors[source[0]["label"][4:]])
    assert (truth[:4] == 255).all()
    red = (errors == (216, 27, 27)).all(-1)
    assert red.sum() == 8 * 12 and red[8:, :12].all()
    assert len(page.images) == 8 + 2  # curves and confusion
    shown = [attrs for attrs in page.named("img") if attrs.get("class") == "pixels"]
    assert [attrs["width"] for attrs in shown] == [str(24 * 12)] * 8
