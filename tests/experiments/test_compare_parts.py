"""Parts of comparisons: which runs, paired differences, tables."""

import csv
import io
import re

import numpy as np
import pytest
from scipy import stats

from experiments.comparison import methods as methods_lib
from experiments.comparison import pairs, tables
from experiments.comparison import results as results_lib
from experiments.comparison.methods import Run
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import config as config_lib
from segjax import files, metrics, published_scores
from segjax.data import datasets
from segjax.errors import UserError

# Arguments


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Folders that look like runs; names with what sweeps have in them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "x/a", "bins=1,2-ab12/seed0", "bins=1,2-ab12/seed1"):
        path = tmp_path / name
        (path / "checkpoints" / "40").mkdir(parents=True)
        (path / "config.json").write_text("{}")
    return tmp_path


def test_arguments_name_methods(runs):
    found, problems = methods_lib.read(
        [
            "a/",
            "U-Net=b",
            "seeds=bins=1,2-ab12/seed0,bins=1,2-ab12/seed1",
            "bins=1,2-ab12/seed0",
            "early=a/checkpoints/40",
        ],
        "best",
    )
    assert problems == []
    assert [method.name for method in found] == [
        *("a", "U-Net", "seeds", "bins=1,2-ab12", "early"),
    ]
    seeds = [runs / f"bins=1,2-ab12/seed{i}" for i in range(2)]
    assert found[2].runs == tuple(Run(path, "best") for path in seeds)
    assert found[4].runs == (Run(runs / "a", "40"),)
    assert found[0].runs == (Run(runs / "a", "best"),)
    # Names that would be the same have more of the path.
    names = [method.name for method in methods_lib.read(["a", "x/a"], "best")[0]]
    assert names == ["a", "x/a"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give the runs to compare"),
        (["nothing"], "nothing is no run: it has no config.json"),
        (["U=nothing"], "nothing of 'U=nothing' is no run"),
        (["U=a,nothing"], "nothing of 'U=a,nothing' is no run"),
        (["U=a", "U=b"], "two methods are called 'U'"),
        (["a", "a"], "two methods are called 'a'"),
        (["checkpoints/40"], "is no run"),
    ],
)
def test_arguments_that_name_no_run(runs, arguments, message):
    with pytest.raises(UserError, match=message):
        methods_lib.read(arguments, "best")


def test_a_sweep_is_a_method_for_each_row(tmp_path):
    base = config_lib.make(total_steps=4)
    chosen = [{"model_name": "unet"}, {"model_name": "fcn"}, {"model_name": "pspnet"}]
    rows = sweep_rows.make_rows(base, chosen)
    sweep_runs.save(tmp_path, sweep_runs.Sweep("c.py", rows, {}, [], 2))
    for row, seeds in zip(rows, ((0, 1), (0,), ())):
        for seed in seeds:
            folder = tmp_path / row.name / f"seed{seed}"
            (folder / "checkpoints" / "4").mkdir(parents=True)
            values = {"step": 4, "confusion": [[1]]}
            files.write_json(folder / "validation.json", values)
    found, problems = methods_lib.read([f"new={tmp_path}"], "latest")
    assert [(m.name, len(m.runs)) for m in found] == [("new unet", 2), ("new fcn", 1)]
    assert found[1].runs[0] == Run(tmp_path / rows[1].name / "seed0", "latest")
    assert problems == [
        "new pspnet, seed 0: missing",
        "new fcn, seed 1: missing",
        "new pspnet, seed 1: missing",
    ]
    names = [m.name for m in methods_lib.read([str(tmp_path)], "latest")[0]]
    assert names == ["unet", "fcn"]


# Pairs


def test_the_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.3, 1, 40)
    found = pairs.interval(values, seed=1)
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=2
    )
    expected = result.confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)
    assert pairs.interval(values, seed=1) == found
    assert np.isnan(pairs.interval(np.array([]), 0)).all()


def test_pairs_count_images():
    scores = np.array([[0.5, 0.5, 0.9, np.nan], [0.4, 0.5, 0.95, 0.1], [0.0] * 4])
    first, second, third = pairs.compare(scores)
    assert (first.better, first.worse, first.equal) == (1, 1, 1)
    assert first.mean == pytest.approx((0.1 + 0 - 0.05) / 3)
    assert first.low <= first.mean <= first.high
    assert (second.first, second.second, second.better) == (0, 2, 3)
    assert (third.better, third.equal) == (4, 0)


def test_images_on_which_methods_differ_most():
    scores = np.array([[0.5, 0.2, np.nan, 0.7], [0.1, 0.4, 0.9, 0.6]])
    assert pairs.telling_images(scores, [(0, 1)], 1) == {0: [(0, 1)], 1: [(1, 0)]}
    found = pairs.telling_images(scores, [(0, 1)], 3)
    assert found == {0: [(0, 1)], 3: [(0, 1)], 1: [(1, 0)]}
    assert pairs.telling_images(scores, [(0, 1)], 0) == {}
    # One image may tell several pairs apart.
    three = np.array([[0.9], [0.5], [0.1]])
    found = pairs.telling_images(three, [(0, 1), (0, 2), (1, 2)], 1)
    assert found == {0: [(0, 1), (0, 2), (1, 2)]}


# Tables of made-up results


@pytest.fixture
def camvid():
    """Two methods on CamVid, of which the first has two runs, and no fences."""
    info = datasets.describe({"name": "camvid"})
    data = results_lib.Data("test", [None] * 3, info, "1234", (360, 480), 2)

    def scored(value):
        classes = np.full(11, value)
        classes[7] = np.nan
        scores = dict.fromkeys(metrics.SCORES, value)
        images = np.full(3, value)
        return results_lib.Scored(Run(None, "best"), 9, scores, classes, images)

    def result(name, *values):
        costs = results_lib.Costs("unet", 1234.0, np.nan)
        return results_lib.Result(name, tuple(map(scored, values)), costs, 2.5, {})

    return [result("a & b", 0.5, 0.6), result("c", 0.55)], data


def test_published_scores_stand_in_a_part_of_their_own(camvid):
    results, data = camvid
    published = published_scores.of("camvid", data.info.classes)
    parts = tables.sections(
        *(results,), data=data, pairs=[], published=published, facts="", costs_note=""
    )
    assert [part.title for part in parts] == [
        "Classes",
        "Scores and costs",
        "Published",
    ]
    head, first, *_ = parts[-1].rows
    values = dict(zip(head, first))
    assert values["published"] == "Dilation8" and values["Sky"] == "89.9"
    assert values["mIoU"] == "65.3" and values["split"] == "test, 480x640"
    assert [row[head.index("mIoU")] for row in parts[-1].rows[1:]] == [
        *("65.3", "61.6", "46.4", "71.95"),
    ]
    text = tables.comma_separated(results, data=data, published=published)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["kind"] for row in rows] == ["measured"] * 2 + ["published"] * 4
    assert float(rows[2]["iou_Sky_mean"]) == pytest.approx(0.899)
    assert float(rows[2]["miou_mean"]) == pytest.approx(0.653)
    assert rows[0]["iou_Fence_mean"] == "" and rows[0]["flops"] == ""
    assert float(rows[0]["miou_std"]) == pytest.approx(0.1 / 2**0.5)
    text = tables.latex(results, data=data, published=published, facts="x")
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    widths = [len(re.split(r"(?<!\\)&", line)) for line in lines]
    assert widths == [13] * 3 + [1] + [13] * 4
    assert r"a \& b & " in lines[1] and " -- & " in lines[1]
    assert r"\multicolumn{13}{l}" in lines[3] and "Dilation8, test" in lines[4]


def test_the_best_numbers_are_those_that_print_highest(camvid):
    results, _ = camvid
    best = tables.best(results)
    assert {row for row, _ in best} == {0, 1}  # 55.0 both: equal as printed
    assert (0, 8) not in best and (1, 8) not in best  # no fences
    assert len(best) == 22


def test_latex_escapes():
    assert tables.escape("a_b & 5% {x}^~\\") == (
        r"a\_b \& 5\% \{x\}\textasciicircum{}\textasciitilde{}\textbackslash{}"
    )
