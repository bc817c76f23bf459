"""The report of a sweep, from runs that are written by hand."""

import base64
import csv
import html.parser
import json
import math
import os
import re
import shutil
from pathlib import Path

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import report
from experiments.shared import tables
from experiments.sweeps import report_rows
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import config as config_lib
from segjax import viz
from segjax import workdir as workdir_lib
from segjax.analysis import receptive_field
from segjax.data import datasets
from segjax.data import scene_canvas as scenes
from segjax.errors import UserError
from segjax.ops import geometry

STEPS = 4
WIDTHS = ((2, 4), (3, 6), (4, 8))
TENTS = scenes.TENT_RED, scenes.TENT_BLUE


def confusion(tents: list[list[int]], wires: tuple[int, int] = (10, 0)) -> np.ndarray:
    """All right but the tents, and the wires of which some are taken for sky."""
    h = 100 * np.eye(9, dtype=np.int64)
    h[np.ix_(TENTS, TENTS)] = tents
    h[scenes.WIRE, [scenes.WIRE, scenes.SKY]] = wires
    return h


def write_run(folder, h=None, steps=STEPS, log="", code=0):
    """What training leaves behind; without a confusion matrix it did not finish."""
    folder.mkdir(parents=True)
    rates = [1.0, 30.0, 40.0, 50.0][:steps]  # the first one includes compilation
    rows = [{"step": i, "images_per_second": r} for i, r in enumerate(rates, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "log.txt").write_text(log)
    (folder / "exit.json").write_text(str(code))
    workdir_lib.write_dataset(folder, datasets.describe({"name": "scenes"}))
    if h is not None:
        values = {"step": steps, "confusion": h.tolist(), "images_per_second": 80.0}
        values |= {"compile_seconds": 7.5, "peak_bytes": 2e9, "peak_of": "process"}
        (folder / "validation.json").write_text(json.dumps(values))
        (folder / "checkpoints" / str(steps)).mkdir(parents=True)
        (folder / "pictures").mkdir()
        picture = np.full((8, 24, 3), 90, np.uint8)
        cv2.imwrite(str(folder / "pictures" / f"{steps:08d}_0.png"), picture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three rows of two seeds: finished; one failed, one interrupted; nothing yet."""
    folder = tmp_path_factory.mktemp("sweep")
    base = config_lib.make(
        model={"padding": "same"},
        data={"scenes_size": (32, 48)},
        total_steps=STEPS,
    )
    rows = sweep_rows.make_rows(base, [{"model.widths": widths} for widths in WIDTHS])
    fields = {"data.data_dir": "/home/me/scenes", "batch_size": 2}
    options = ["--compilation_cache=/home/me/cache"]
    config_file = "/home/me/segjax/configs/x.py:quick"
    sweep_runs.save(folder, sweep_runs.Sweep(config_file, rows, fields, options, 2))
    first, second = (folder / row.name for row in rows[:2])
    write_run(first / "seed0", confusion([[90, 10], [30, 70]]))
    write_run(first / "seed1", confusion([[60, 40], [40, 60]], wires=(5, 5)))
    write_run(second / "seed0", steps=3, log="step 3\nerror: loss nan\n", code=3)
    write_run(second / "seed1", steps=2)
    return folder


@pytest.fixture(scope="module")
def reported(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    options = {"classes": ["wire"], "pair": ["tent_red", "tent_blue"], "erf": False}
    assert not report.report(folder, output, **options, kept=output / "kept")
    return output


def test_what_is_kept_is_not_of_one_machine(reported):
    files = {path.name: path for path in (reported / "kept").iterdir()}
    assert files.keys() == {"report.md", "report.csv", "report.png"}
    texts = [files[name].read_text() for name in ("report.md", "report.csv")]
    for text in texts:
        assert "/home" not in text and "/tmp" not in text and "cache" not in text
        assert "--config configs/x.py:quick" in text
        assert "--config.data.data_dir=/path/to/scenes" in text
        assert "img/s" not in text and "per_second" not in text and "MB of" not in text
    assert "* widths=3,6, seed 0: failed at step 3 with exit code 3\n" in texts[0]
    kept, *_ = csv.DictReader(texts[1].splitlines())
    row, *_ = csv.DictReader((reported / "report.csv").read_text().splitlines())
    assert kept.keys() < row.keys() and kept | {"command": ""} == {
        key: row[key] for key in kept
    } | {"command": ""}


def test_numbers_of_seeds_keep_their_places(reported):
    rows = list(csv.DictReader((reported / "report.csv").read_text().splitlines()))
    assert [row["seeds"] for row in rows] == ["0 1"] * 3
    assert rows[1]["states"] == "failed interrupted"
    assert rows[1]["mIoU_seeds"] == "nan nan"


def test_scores_are_means_and_deviations_over_the_seeds(reported):
    """By hand: 7 right classes; IoU of the tents 90/130, 70/110; 60/140 twice."""
    row, *others = csv.DictReader((reported / "report.csv").read_text().splitlines())
    whole = [(7 + 90 / 130 + 70 / 110) / 9, (5 + 100 / 105 + 0.5 + 120 / 140) / 9]
    mean = sum(whole) / 2
    assert float(row["mIoU_mean"]) == pytest.approx(mean)
    deviation = math.sqrt(2) * abs(whole[0] - mean)  # of two values, n - 1
    assert float(row["mIoU_std"]) == pytest.approx(deviation)
    assert [float(x) for x in row["mIoU_seeds"].split()] == pytest.approx(whole)
    assert float(row["tent_red/tent_blue_mean"]) == pytest.approx((0.8 + 0.6) / 2)
    assert float(row["wire_mean"]) == pytest.approx(0.75)
    assert [float(x) for x in row["train_images_per_second"].split()] == [35.0, 35.0]
    assert [other["mIoU_mean"] for other in others] == ["", ""]


def write_evaluation(run, h, **changes):
    """What `experiments.evaluate --checkpoint=latest --crf=..` leaves behind."""
    found = {"step": STEPS, "stages": {"model": "", "with CRF": "crf"}}
    found |= {"models": [{"path": "here", "step": STEPS}], "scores": {}}
    found["crf"] = {"settings": {}, "confusion": h.tolist()}
    (run / "evaluation").mkdir(exist_ok=True)
    path = run / "evaluation" / "validation.json"
    path.write_text(json.dumps(found | changes))


def test_scores_with_a_crf_are_those_of_the_same_step(folder, tmp_path):
    """Of one seed of two: 7 right classes, IoU of the tents 90/130 and 70/110."""
    copy = shutil.copytree(folder, tmp_path / "sweep")
    run = next(copy.glob("*/seed1/validation.json")).parent

    def reported():
        report.report(copy, tmp_path, classes=[], pair=[], erf=False)
        text = (tmp_path / "report.csv").read_text()
        return next(csv.DictReader(text.splitlines()))

    assert "mIoU_with_crf_mean" not in reported()
    h = confusion([[90, 10], [30, 70]])
    for other in (
        {"step": STEPS - 1},
        {"stages": {"model": "plain", "with flip": "", "with CRF": "crf"}},
        {"models": [{}, {}]},
        {"crf": {"settings": {}}},
    ):
        write_evaluation(run, h, **other)
        assert "mIoU_with_crf_mean" not in reported(), other
    write_evaluation(run, h)
    row = reported()
    assert float(row["mIoU_with_crf_mean"]) == pytest.approx(
        (7 + 90 / 130 + 70 / 110) / 9
    )
    assert row["mIoU_with_crf_std"] == "" and float(row["mIoU_mean"]) < 1
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert any("| mIoU % | mIoU with CRF % |" in line for line in lines)
    assert any("| 92.5 (1 of 2) |" in line for line in lines)
    more = {"metrics": {"objects": {"seg": 0.5, "split_objects": None}}}
    bands = [0.1, 0.2, 0.3, 0.4, 0.5]
    crf = {"confusion": h.tolist(), "trimap": {"radius": [1], "miou": bands}}
    write_evaluation(run, h, **more, crf=crf)
    row = reported()
    assert row["seg_seeds"] == "nan 0.5" and row["split_objects_seeds"] == "nan nan"
    assert row["mIoU_within_5px_with_crf_seeds"] == "nan 0.5"
    assert "mIoU_within_5px_seeds" not in row and "mIoU_within_10px" not in str(row)
    stages = {"model": "plain", "with flip, scales": "", "with CRF": "crf"}
    flipped = {"confusion": np.eye(9, dtype=int).tolist(), "plain": {**more}}
    write_evaluation(run, h, stages=stages, **flipped)
    row = reported()
    assert row["seg_seeds"] == "nan 0.5" and "seg_with_flip_scales_seeds" not in row
    assert row["mIoU_with_flip_scales_seeds"] == "nan 1.0"
    assert row["mIoU_with_flip_scales_crf_std"] == "" and "mIoU_with_crf" not in row
    # Another evaluation, by --output, has columns of its own.
    write_evaluation(run, h)
    other = run / "evaluation" / "few"
    other.mkdir()
    stages = {"model": "plain", "with proposals": ""}
    values = {
        "step": STEPS,
        "stages": stages,
        "confusion": np.eye(9, dtype=int).tolist(),
    }
    (other / "validation.json").write_text(json.dumps(values | {"models": [{}]}))
    row = reported()
    assert (
        row["mIoU_with_proposals_few_seeds"] == "nan 1.0" and row["mIoU_with_crf_mean"]
    )
    write_evaluation(run, h, crf={"confusion": [[1, 2], [3]]})
    with pytest.raises(UserError, match="matrix with CRF is not square"):
        reported()
    (run / "evaluation" / "validation.json").write_text('{"step": "x"}')
    with pytest.raises(UserError, match=r"evaluation/validation.json"):
        reported()


def test_evaluations_of_something_else_are_left_out_and_named(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "sweep")
    runs = sorted(path.parent for path in copy.glob("*/seed*/validation.json"))
    config = config_lib.json_like(sweep_runs.load(copy).rows[0].config)
    h = confusion([[90, 10], [30, 70]])

    def reported():
        report.report(copy, tmp_path, classes=[], pair=[], erf=False)
        header = (tmp_path / "report.csv").read_text().splitlines()[0]
        return "mIoU_with_crf" in header, capsys.readouterr().err

    for run in runs:
        splits = {"validation": workdir_lib.Split(7, "aa" * 12)}
        workdir_lib.write_splits(run, splits)
        # Tiles, the folder of the data and the CRF are told elsewhere, or nothing.
        other = {"seed": 1, "tile": 33, "crf": {"iterations": 3}}
        data = {"data": config["data"] | {"root": "/elsewhere"}}
        fields = {"config": config | other | data, "fingerprint": "aa" * 12}
        write_evaluation(run, h, **fields, options={"scales": [1.0]})
    shown, notes = reported()
    assert shown and "note:" not in notes
    resized = {"config": config | {"data": config["data"] | {"resize": (9, 9)}}}
    for changes, reason in (
        ({"step": 3}, "step 3, the last one is 4"),
        ({"stages": {"with CRF": "crf"}}, "does not score the model alone"),
        ({"fingerprint": "bb" * 12}, "other images than those of 'validation'"),
        (resized, "--config.data.resize=(9, 9), the run has (0, 0)"),
        ({"config": {"model": {"x": 1}}}, "config is of another version"),
    ):
        for run in runs:
            write_evaluation(run, h, **changes)
        shown, notes = reported()
        assert not shown and notes.count(reason) == len(runs) == 2, notes
    for run in runs:
        write_evaluation(run, h)
        os.utime(run / "evaluation" / "validation.json", (1, 1))
    shown, notes = reported()
    assert not shown and notes.count("is older than the checkpoint") == 2
    for run, scales in zip(runs, ([0.5, 1.0], [1.0, 1.5])):
        stages = {"model": "plain", "with scales": ""}
        options = {"scales": scales, "tile": len(str(run))}
        write_evaluation(run, h, stages=stages, confusion=h.tolist(), options=options)
    _, notes = reported()
    text = "seed 1 has scales [1.0, 1.5], of widths=2,4, seed 0 [0.5, 1.0]; they share"
    assert text in notes and notes.count("note:") == 1
    write_evaluation(runs[0], h, options={"scales": [1.0]})  # another column
    assert "note:" not in reported()[1]


def test_deviations_are_of_what_is_known():
    """Sample deviation of 1 and 3: sqrt(((1 - 2)^2 + (3 - 2)^2) / 1)."""
    text = tables.mean_text
    assert text(np.array([1.0, 3.0])) == "2.0 ± 1.4"
    # A class that is neither there nor predicted has no IoU.
    assert text(np.array([1.0, math.nan, 3.0])) == "2.0 ± 1.4"
    assert text(np.array([1.0, math.nan])) == "1.0"
    assert text(np.array([math.nan])) == text(np.array([])) == "-"


def test_scores_that_a_run_does_not_have_are_counted(folder, tmp_path):
    """Seed 1 takes all tents for the sky: which kind they are cannot be told."""
    copy = shutil.copytree(folder, tmp_path / "sweep")
    path = next(copy.glob("*/seed1/validation.json"))
    values = json.loads(path.read_text())
    values["confusion"] = confusion([[0, 0], [0, 0]]).tolist()
    path.write_text(json.dumps(values))
    pair = ["tent_red", "tent_blue"]
    report.report(copy, tmp_path, classes=[], pair=pair, erf=False)
    # Seed 0: (90 / 100 + 70 / 100) / 2.
    assert "| 80.0 (1 of 2) |" in (tmp_path / "report.md").read_text()


def test_the_table_has_every_row_and_says_what_became_of_it(reported, capsys):
    text = (reported / "report.md").read_text()
    assert "mean ± sample standard deviation over seeds" in text.splitlines()[0]
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    titles = [cell.strip() for cell in head.strip("|").split("|")]
    cells = [dict(zip(titles, re.split(r" *\| *", row.strip("| ")))) for row in rows]
    assert [row["row"] for row in cells] == ["widths=2,4", "widths=3,6", "widths=4,8"]
    runs = ["2 of 2", "0 of 2, failed, interrupted", "0 of 2, missing"]
    assert [row["runs"] for row in cells] == runs
    assert cells[0]["mIoU %"] == "86.9 ± 8.0" and cells[0]["compile s"] == "7.5"
    assert cells[0]["MB of process"] == "2,000" and cells[1]["mIoU %"] == "-"
    assert (
        "* widths=3,6, seed 0: failed at step 3 with exit code 3: error: loss nan"
        in text
    )
    assert "* widths=3,6, seed 1: interrupted at step 2" in text
    assert "* widths=4,8, seed 1: missing" in text
    assert "--config.batch_size=2 --config.model.widths=2,4 --config.seed=0" in text
    assert len({row["hash"] for row in cells}) == 3


def test_costs_do_not_need_the_runs(reported):
    """U-Net of widths 2, 4: counted by hand; 3x3 at the full and at half resolution."""
    rows = list(csv.DictReader((reported / "report.csv").read_text().splitlines()))

    def parameters(a, b):
        convs = [(3, a), (a, a), (a, b), (b, b), (2 * a, a), (a, a)]
        return sum(9 * i * o + o for i, o in convs) + 4 * b * a + a + a * 9 + 9

    assert [float(row["parameters"]) for row in rows] == [
        parameters(*widths) for widths in WIDTHS
    ]
    # 2 of 3x3 at full size, pooling, 2 of 3x3 at half, 2x2 up, 2 of 3x3 at full size.
    fields = {(int(row["field_min"]), int(row["field_max"])) for row in rows}
    assert len(fields) == 1 and fields.pop()[1] == 18
    assert {row["image_height"] for row in rows} == {"32"}
    assert 8 < float(rows[0]["sees"]) <= 18


def test_the_page_holds_everything_in_itself(reported):
    text = (reported / "report.html").read_text()
    found, open_tags = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))
            if tag not in ("meta", "img", "html"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("html",):
                assert open_tags.pop() == tag

    Parser().feed(text)
    assert open_tags == []
    images = [attrs["src"] for tag, attrs in found if tag == "img"]
    assert len(images) == 2  # the plot, and of the only row with a finished run
    for image in images:
        kind, _, code = image.partition("base64,")
        assert kind == "data:image/png;"
        data = np.frombuffer(base64.b64decode(code), np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    assert not re.search(r"https?://|<script|<link", text)
    assert text.count("<tr class=bad>") == 2 and "error: loss nan" in text


@pytest.mark.parametrize(
    "classes, pair, message",
    [
        (["wires"], [], "--classes: no class 'wires' in scenes; its classes are sky"),
        ([], ["tent_red"], "--pair=tent_red: expected two classes"),
        ([], ["tent_red", "tent"], "--pair: no class 'tent' in scenes"),
    ],
)
def test_unknown_classes_are_refused(folder, tmp_path, classes, pair, message):
    with pytest.raises(UserError, match=message):
        report.report(folder, tmp_path, classes=classes, pair=pair, erf=False)


def test_each_of_several_sweeps_has_a_report_of_its_own():
    a, b, c = (Path(name) for name in ("a/bins", "b/bins", "b/rates"))
    assert report.outputs([a, c], "") == [a, c]
    assert report.outputs([c], "o") == [Path("o")]
    assert report.outputs([a, c], "o") == [Path("o/bins"), Path("o/rates")]
    with pytest.raises(UserError, match="--output=o: found a/bins and b/bins, "):
        report.outputs([a, c, b], "o")


def test_scores_of_classes_are_of_the_classes_that_were_trained(folder, tmp_path):
    """Not of those that the data have by now, in another order."""
    copy = shutil.copytree(folder, tmp_path / "sweep")
    path = next(copy.glob("*/seed1/checkpoints")).parent / "dataset.json"
    values = json.loads(path.read_text())
    values["classes"] = values["classes"][::-1]
    path.write_text(json.dumps(values))
    report.report(copy, tmp_path, classes=[], pair=[], erf=False)
    with pytest.raises(UserError, match="seed1 was trained with class 0 named"):
        report.report(copy, tmp_path, classes=["wire"], pair=[], erf=False)


def test_guessing_tells_nothing_apart():
    h = confusion([[50, 50], [50, 50]])
    assert report_rows.told_apart(h, TENTS) == 0.5
    assert report_rows.told_apart(confusion([[99, 0], [99, 0]]), TENTS) == 0.5
    assert math.isnan(report_rows.told_apart(confusion([[0, 0], [3, 4]]), TENTS))


class Strided(nn.Module):
    """A 3x3 convolution of rate 4, then every second row."""

    tiling = geometry.ANY_SIZE

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32)
        x = nn.Conv(1, (3, 3), kernel_dilation=4, padding=4, name="conv")(x)
        return x[:, ::2, ::2], {}


def test_rows_seen_are_those_that_move_the_output():
    model = Strided()
    seen = receptive_field.rows_seen(model, (17, 9, 1))
    images = jnp.zeros((1, 17, 9, 1))
    variables = model.init(jax.random.key(0), images, False)

    def rows(images):
        return model.apply(variables, images, False)[0].sum(axis=(0, 2, 3))

    moved = np.abs(jax.jacobian(rows)(images)).sum(axis=(1, 3, 4)) > 0
    expected = [(np.flatnonzero(row)[0], np.flatnonzero(row)[-1]) for row in moved]
    np.testing.assert_array_equal(seen, expected)


def test_figure_draws_what_is_known():
    names = [f"row {i}" for i in range(12)]
    costs = {"a": np.arange(12.0), "b": [math.nan, *range(11)]}
    scores = {"mIoU": [np.array([50.0, 52.0])] * 11 + [np.array([])]}
    data = viz.tradeoff_figure(names, costs, scores)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] > 300 and picture.shape[1] > 900 and picture.std() > 5
