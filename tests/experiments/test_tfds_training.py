"""From records of TFDS to a trained network, its scores and predictions."""

import json

import forked
import kill
import numpy as np
import pytest
import tfds_builders
from PIL import Image

CONFIG = """
from segjax.config import make
def get_config():
    return make(
        model={"padding": "same", "widths": (2, 4)}, batch_size=4, eval_batch_size=4,
        data={"name": "tfds:oxford_iiit_pet", "root": "ROOT",
              "train_split": "train[:80%]", "eval_split": "train[80%:]"},
        total_steps=2, eval_every=0, eval_images=0, save_every=1, log_every=1,
        threads=1)
"""
RUN = """
import runpy, sys
try:
    runpy.run_module("experiments.PROGRAM", run_name="__main__", alter_sys=True)
finally:
    assert "tensorflow" not in sys.modules
"""
COMMANDS = {
    # name: program and arguments; in this order
    "train": "train --config=CONFIG --workdir=RUN",
    "resume": "train --config=CONFIG --workdir=RUN --config.total_steps=3",
    "evaluate": "evaluate --workdir=RUN",
    "evaluate test": "evaluate --workdir=RUN --split=test --output=OUT",
    "predict": "predict --workdir=RUN --output=OUT/p IMAGES --config.data.root=/none",
    "export": "export --workdir=RUN --output=OUT/e --sizes=20x24 --platforms=cpu",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    tfds_builders.pets(root / "tfds")
    (root / "config.py").write_text(CONFIG.replace("ROOT", str(root / "tfds")))
    (root / "images").mkdir()
    Image.fromarray(tfds_builders.noise(0)).save(root / "images" / "a.png")
    names = {"CONFIG": "config.py", "RUN": "run", "OUT": "out", "IMAGES": "images"}
    return {name: root / path for name, path in names.items()}


@pytest.fixture(scope="module")
def results(places):
    def run(command):
        for name, path in places.items():
            command = command.replace(name, str(path))
        program, *arguments = command.split()
        code = RUN.replace("PROGRAM", program)
        return forked.run(["-c", code, *arguments], kill.environment(1))

    return {name: run(command) for name, command in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs_without_tensorflow(results, name):
    code, _, err = results[name]
    assert code == 0, err


def test_what_it_trains_on_and_evaluates(results, places):
    described = json.loads((places["RUN"] / "dataset.json").read_text())
    assert described["classes"] == ["pet", "background", "border"]
    assert described["name"] == "tfds:oxford_iiit_pet"
    splits = json.loads((places["RUN"] / "splits.json").read_text())
    assert {k: v["images"] for k, v in splits.items()} == {
        "train[:80%]": 8,
        "train[80%:]": 2,
    }
    assert "from step 2 of 3" in results["resume"][2]
    found = json.loads((places["RUN"] / "evaluation/train[80%:].json").read_text())
    assert found["images"] == 2
    assert np.sum(found["confusion"]) == 2 * tfds_builders.H * tfds_builders.W
    found = json.loads((places["OUT"] / "test.json").read_text())
    truth = [tfds_builders.mask(100 + i, 1, 3) - 1 for i in range(2)]
    counts = np.bincount(np.ravel(truth), minlength=3)
    assert np.sum(found["confusion"], 1).tolist() == counts.tolist()
    assert list((places["OUT"] / "p").rglob("a*.png"))
