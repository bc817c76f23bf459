"""Claims of papers against reports: differences over seeds, verdicts, the page."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.stats

from experiments import results
from experiments.shared import arguments
from experiments.sweeps import claims, costs, paired, results_page, results_plot
from segjax import models
from segjax.analysis.summary import summary
from segjax.errors import UserError

ROOT = Path(__file__).parents[2]


def by_seed(*values):
    return dict(enumerate(values))


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(5)
    low = rng.normal(50, 5, 6)
    high = low + rng.normal(1, 1, 6)
    found = paired.difference(by_seed(*low), by_seed(*high))
    oracle = scipy.stats.ttest_rel(high, low)
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((high - low).mean())
    assert found.deviation == pytest.approx(np.std(high - low, ddof=1))
    assert found.seeds == (0, 1, 2, 3, 4, 5)


def test_the_interval_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t of two degrees of freedom 4.3027."""
    found = paired.difference(by_seed(10, 50, 30), by_seed(11, 52, 33))
    half = 4.30265273 / math.sqrt(3)
    assert found[1:] == pytest.approx((2, 1, 2 - half, 2 + half))


@pytest.mark.parametrize(
    "differences, margin, expected",
    [
        ((4, 5, 6), 0, "reproduced"),  # half of the interval is 2.48
        ((-4, -5, -6), 0, "not reproduced"),
        ((1, 2, 3), 0, "undecided"),
        ((1, 2, 3), 4.5, "not reproduced"),
        ((1, 2, 3), 4.4, "undecided"),
        ((-1, -2, -3), 4.4, "undecided"),
        ((4, 5, 6), 9, "reproduced"),
        ((5,), 9, "undecided"),  # one seed
        ((), 9, "undecided"),
        ((0, 0), 0, "undecided"),
    ],
)
def test_verdicts(differences, margin, expected):
    low = by_seed(*[50 + 7 * i for i in range(len(differences))])
    high = {seed: low[seed] + differences[seed] for seed in low}
    assert paired.verdict(paired.difference(low, high), margin) == expected


def test_only_seeds_of_both_arms_count():
    low = {0: 1.0, 1: 2.0, 2: math.nan, 4: 9.0}
    found = paired.difference(low, {4: 9.5, 1: 3.0, 2: 4.0, 3: 5.0})
    assert found.seeds == (1, 4) and found.mean == 0.75


CLAIM = """
place = 2
title = "A | B"
claim = "more is better"
published = "1, 2"
source = "a paper"
commands = ["python -m experiments.quickstart --workdir runs/x"]
orderings = [
    "few < some < many",
    { order = "many < few", column = "merged", unit = "" },
]
[arms]
few = "bins=1,pool=avg"
some = { row = "bins=1,2" }
many = "bins=1,2,3"
"""
REPORT = """\
row,seeds,states,mIoU_mean,mIoU_seeds,merged_seeds
"bins=1,pool=avg",0 1 2,finished finished finished,,0.50 0.60 0.70,240 250 261
"bins=1,2,pool=avg",0 1 2,finished finished failed,,0.52 0.63 nan,1 2 3
"bins=1,2,3,pool=avg",0 1 2,finished finished finished,,0.54 0.64 0.74,140 151 160
"bins=1,pool=avg,norm=batch",0 1 2,finished finished finished,,0 0 0,0 0 0
"""


def write_row(folder, claim=CLAIM, report=REPORT):
    (folder / "scenes").mkdir(parents=True)
    (folder / "claim.toml").write_text(claim)
    (folder / "scenes" / "report.csv").write_text(report)


def test_a_claim_is_held_against_a_report(tmp_path):
    write_row(tmp_path / "results" / "bins")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "results.md"
    first = results.write(tmp_path / "results", page)
    assert [path.name for path in first] == ["results.md", "bins.png"]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text().splitlines()
        if line.startswith("| scenes")
    ]
    # By hand, of the two seeds that all have: differences 2, 3; then 2, 1; t of one
    # degree of freedom is 12.706.
    score = ["scenes", "mIoU, %"]
    wide = "-3.85 to +8.85", "-4.85 to +7.85"
    assert rows == [
        [*score, "few < some", "55.0 ± 7.1", "57.5 ± 7.8", "+2.50", wide[0], "2"]
        + ["undecided"],
        [*score, "some < many", "57.5 ± 7.8", "59.0 ± 7.1", "+1.50", wide[1], "2"]
        + ["undecided"],
        ["scenes", "merged", "many < few", "150.3 ± 10.0", "250.3 ± 10.5"]
        + ["+100.00", "+97.52 to +102.48", "3", "**reproduced**"],
    ]
    text = page.read_text()
    assert "\n* scenes: bins=1,2,pool=avg, seed 2: failed\n" in text
    assert "| [A \\| B](#a--b) | more is better |" in text and "\n## A | B\n" in text
    picture = cv2.imread(str(first[1]))
    assert picture.std() > 5
    # A current plot stays as it is; another number makes another one.
    assert results.write(tmp_path / "results", page) == [page]
    (tmp_path / "results/bins/scenes/report.csv").write_text(REPORT.replace("74", "75"))
    assert results.write(tmp_path / "results", page) == first
    first[1].write_bytes(first[1].read_bytes()[:5])  # damaged
    assert results.write(tmp_path / "results", page) == first


def test_arms_may_be_gains(tmp_path):
    """Merged less mIoU, in percent: 100 * (240 - 0.5), .."""
    arm = '{ row = "bins=1,pool=avg", column = "merged", minus = "mIoU" }'
    write_row(tmp_path / "bins", CLAIM.replace('"bins=1,pool=avg"', arm))
    ((_, (data,)),) = claims.read_all(tmp_path)
    assert data.pairs[0].lower == pytest.approx({0: 23950, 1: 24940, 2: 26030})
    assert data.pairs[0].higher[0] == pytest.approx(52)


def test_data_sets_may_have_other_rows_and_may_be_missing(tmp_path):
    claim = CLAIM.replace('merged"', 'merged", data = ["isbi"]')
    row = 'row = "bins=1,2"'
    write_row(
        tmp_path / "bins", claim.replace(row, row + ', on = { camvid = "bins=3" }')
    )
    other = REPORT.replace("bins=1,2,pool", "bins=3,pool").replace(" failed", " x")
    (tmp_path / "bins" / "camvid").mkdir()
    (tmp_path / "bins" / "camvid" / "report.csv").write_text(other)
    ((claim, data),) = claims.read_all(tmp_path)
    assert [(x.name, len(x.pairs)) for x in data] == [
        ("camvid", 2),
        ("isbi", 0),
        ("scenes", 2),
    ]
    assert data[0].notes == ["bins=3,pool=avg, seed 2: x"]
    assert "isbi: not run" in results_page.page([(claim, data)])


@pytest.mark.parametrize(
    "claim, report, message",
    [
        (
            ("place = 2", "plaec = 2"),
            "",
            r"claim.toml: key: unknown value 'plaec'; did",
        ),
        (
            ('unit = ""', 'untis = ""'),
            "",
            "key: unknown value 'untis'; did you mean 'u",
        ),
        (("row = ", "rwo = "), "", "key: unknown value 'rwo'; did you mean 'row'"),
        (
            ('row = "bins=1,2"', 'row = "bins=1,2", on = { scnes = "bins=3" }'),
            "",
            "arms.some.on: folder: unknown value 'scnes'; did you mean 'scenes'",
        ),
        (("place = 2", ""), "", r"claim.toml: the file: 'place' is a required"),
        (("few < some", "few < soem"), "", "unknown value 'soem'; did you mean 'some'"),
        (
            ('"few < some < many"', '"few"'),
            "",
            "found 'few', expected two arms or more",
        ),
        (("place = 2", "place ="), "", "claim.toml: is not valid TOML"),
        (
            ("bins=1,2,3", "bins=1,3"),
            "",
            "many.*unknown value 'bins=1,3'; did you mean",
        ),
        (
            ("bins=1,pool", "pool"),
            "",
            "'pool=avg' is part of several rows: bins=1,pool",
        ),
        (('"merged"', '"mergde"'), "", "unknown value 'mergde'; did you mean 'merged'"),
        ((), ("seeds,states", "seed,states"), "has no column 'seeds'"),
        ((), ("0.52 0.63 nan", "0.52 0.63"), "report.csv: row bins=1,2,pool=avg: "),
        ((), (",0.50 0.60 0.70,240 250 261", ""), "pool=avg: .* each of its"),
        (('few = "', 'few = { row = "bins=1,2" }\nx = "'), "", "'few' and 'some'"),
        ((), (REPORT, "row,seeds,states\n"), "report.csv: has no rows"),
    ],
)
def test_bad_files_are_told_in_a_line(tmp_path, claim, report, message):
    write_row(
        tmp_path / "bins",
        CLAIM.replace(*claim) if claim else CLAIM,
        REPORT.replace(*report) if report else REPORT,
    )
    with pytest.raises(UserError, match=message) as caught:
        claims.read_all(tmp_path)
    assert "\n" not in str(caught.value)


def test_costs_are_those_of_all_rows(tmp_path, monkeypatch):
    """3 x the forward pass for every image of every step: 5 + 7 steps of 4 images."""
    (tmp_path / "configs/sweeps").mkdir(parents=True)
    (tmp_path / "configs/sweeps/two.py").write_text(
        "from segjax.config import make\n"
        "def get_config():\n"
        "    data = {'name': 'scenes', 'scenes_size': (64, 64)}\n"
        "    return make(model_name='fusionnet', data=data, batch_size=4,\n"
        "                total_steps=5, model={'widths': (2, 2, 2, 2)})\n"
        "def sweep():\n"
        "    yield {}\n"
        "    yield {'total_steps': 7}\n"
    )
    monkeypatch.chdir(tmp_path)
    cost = costs.count("configs/sweeps/two.py")
    assert cost[:4] == (("fusionnet",), 2, 12, 48)
    config = arguments.run_config_file("configs/sweeps/two.py")
    forward = summary(models.build(config, 9), (64, 64, 3), activations=False).flops
    assert cost.flops == 3 * forward * 48
    assert costs.hours(cost, 1e12) == pytest.approx(3 * cost.flops / 0.4e12 / 3600)
    # Written to a file, read again, and shown.
    costs.write(tmp_path / "costs.json", {"a.py": cost})
    assert costs.read(tmp_path / "costs.json") == {"a.py": cost}
    full = CLAIM.replace("commands", 'full = ["a.py"]\ncommands')
    write_row(tmp_path / "results" / "bins", full)
    found = claims.read_all(tmp_path / "results")
    shown = f"| `a.py` | fusionnet | 6 | 36 | {3 * cost.flops:.1e} |"
    assert shown in results_page.page(found, {"a.py": cost})
    with pytest.raises(UserError, match="'a.py' are not counted; .* --costs"):
        results_page.page(found, {"b.py": cost})


def test_the_committed_page_is_what_the_files_give():
    found = claims.read_all(ROOT / "results")
    page = ROOT / "docs" / "results.md"
    counted = costs.read(ROOT / "results" / results.COSTS)
    written = results_page.page(found, counted)
    assert page.read_text() == written, "run `make results`"
    # Counted from configs as they are now.
    file = "configs/sweeps/field_of_view.py"
    assert costs.count(file) == counted[file], "experiments.results --costs"
    drawn = {
        f"{claim.name}.png": results_plot.digest(panels)
        for claim, data in found
        if (panels := results_plot.panels(claim, data))
    }
    images = page.parent.glob("images/results/*.png")
    found = {path.name: results_plot.digest_of(path) for path in images}
    assert found == drawn, "run `make results`"
