"""Evaluation by two processes: every image counts once, also those in parts."""

import json
import sys

import kill
import numpy as np
from PIL import Image
from test_resume import free_port
from workdirs import make_run

from segjax.data import datasets

SIZES = [(24, 30)] * 4 + [(40, 36), (36, 40), (20, 20)]


def test_two_processes_have_the_results_of_one(tmp_path):
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, size in enumerate([*SIZES, (20, 20)]):  # the last one trains
        image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        image.resize(size[::-1]).save(root / "images" / f"{i}.png")
        mask = rng.integers(0, 3, size, np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "val.txt").write_text("\n".join("0123456"))
    (root / "train.txt").write_text("7")
    (root / "classes.txt").write_text("class0\nclass1\nclass2\n")
    options = {"data": {"name": "folder", "root": str(root)}, "eval_images": 1}
    fields = {"padding": "same", "widths": (2, 3)}
    config, *_ = make_run(tmp_path / "run", "unet", fields, **options)

    def start(output, devices, *flags):
        command = [
            *(sys.executable, "-m", "experiments.evaluate"),
            *("--workdir", str(tmp_path / "run"), "--output", str(tmp_path / output)),
            *("--max_pixels=1000", "--metrics=image_iou", "--trimap", "--worst=5"),
            *("--flip", "--window=24", "--compilation_cache="),
        ]
        return kill.fork([*command, *flags], devices=devices)

    kill.finish(start("one", 4))
    port = free_port()
    pair = [
        start(
            *("two", 2, f"--coordinator=localhost:{port}"),
            *("--num_processes=2", f"--process_id={i}"),
        )
        for i in (0, 1)
    ]
    logs = [kill.finish(process) for process in pair]
    assert "process 1/2, 2 of 4 devices" in logs[1]
    one, two = (
        json.loads((tmp_path / d / "validation.json").read_text())
        for d in ("one", "two")
    )
    assert (two["images"], two["in_parts"]) == (7, 2)
    assert one == two
    source, _ = datasets.load(config.data, "validation")
    assert np.sum(two["confusion"]) == sum(h * w for h, w in source.sizes)
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}
    assert {f"validation_worst_{i}.png" for i in range(5)} <= names
    for name in sorted(names):
        if not name.startswith("validation_0"):  # the first one of process 0
            same = [(tmp_path / d / name).read_bytes() for d in ("one", "two")]
            assert same[0] == same[1], name
