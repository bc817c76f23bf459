"""The page of speeds: what is committed is what its files say."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import speed_page
from segjax.errors import UserError

ROOT = Path(speed_page.__file__).parents[2]
PLAN = speed_page.Plan("a network", "unet_camvid.py")
NUMBERS = {
    "needed_gib": 1.234,
    "seconds": 0.05,
    "memory_seconds": 0.02,
    "utilisation": 0.456,
    "collectives": {"all-reduce": [3, 4_500_000]},
    "weak_scaling": [
        {"topology": name, "slices": count, "images_without_overlap": 1000 * place}
        for place, (name, count) in enumerate(speed_page.SLICES, start=1)
    ],
}


def test_the_committed_page_is_current():
    text = (ROOT / "docs" / "speed.md").read_text()
    assert text == speed_page.page(speed_page.MEASURED)
    stems = {path.stem for path in speed_page.MEASURED.glob("plan_*.json")}
    assert stems <= set(speed_page.PLANS)


def test_row_of_a_plan():
    assert speed_page.plan_row(PLAN, NUMBERS) == (
        "a network",
        "50.0 ms",
        "45.6 %",
        "1.23 GiB",
        "20.0 ms",
        "3 times, 4.5 MB",
        "1,000, 2,000, 3,000, 4,000",
    )


def test_a_plan_without_slices_is_refused():
    numbers = NUMBERS | {"weak_scaling": NUMBERS["weak_scaling"][1:]}
    with pytest.raises(UserError, match="a network has no slices .*4x4"):
        speed_page.plan_row(PLAN, numbers)


def test_damaged_files_are_refused(tmp_path):
    times = speed_page.MEASURED / "against_torch.json"
    (tmp_path / times.name).write_text(times.read_text())
    (tmp_path / "plan_unet.json").write_text(json.dumps({"": {"seconds": 1}}))
    with pytest.raises(UserError, match="plan_unet.json"):
        speed_page.page(tmp_path)
