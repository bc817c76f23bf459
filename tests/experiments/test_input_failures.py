"""Training when its input fails: a worker that dies, a file that goes bad."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from experiments import train
from segjax import config as config_lib
from segjax.data import pipeline
from segjax.data.workers import WorkerDied
from segjax.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def signals():
    """Training takes SIGINT and SIGTERM over; give them back to pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i in range(9):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        mask = rng.integers(0, 2, (16, 16), np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "val.txt").write_text("8\n")
    return config_lib.make(
        model_name="unet",
        model={"widths": (2, 4), "padding": "same"},
        data={"name": "folder", "root": str(root)},
        batch_size=4,
        total_steps=6,
        eval_every=0,
        eval_batch_size=4,
        eval_images=0,
        save_every=100,
        log_every=100,
    )


def checksums(workdir, step) -> dict:
    """Of every array of a checkpoint."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["arrays"]


FAILURES = [WorkerDied("a worker died"), UserError("x.png: bad")]


@pytest.mark.parametrize(
    "error", [WorkerDied("a worker died"), UserError("x.png: bad")]
)
def test_the_state_is_kept_if_the_input_fails(
    tmp_path, monkeypatch, capfd, config, error
):
    whole = pipeline.train_batches

    def failing(*args, start, **options):
        for number, batch in enumerate(whole(*args, start=start, **options), start):
            if number == 5:
                raise error
            yield batch

    monkeypatch.setattr(pipeline, "train_batches", failing)
    # Two batches are on their way to the devices when the sixth is asked for.
    with pytest.raises(UserError, match=f"^{error}; last checkpoint: step 3: start"):
        train.train(config, tmp_path / "run")
    capfd.readouterr()
    monkeypatch.setattr(pipeline, "train_batches", whole)
    assert train.train(config, tmp_path / "run") == 0
    assert "continuing from step 3 of 6" in capfd.readouterr().err
    assert train.train(config, tmp_path / "whole") == 0
    assert checksums(tmp_path / "run", 6) == checksums(tmp_path / "whole", 6)
    assert checksums(tmp_path / "run", 3) != checksums(tmp_path / "run", 6)


def test_nothing_is_saved_before_the_first_step(tmp_path, monkeypatch, config):
    def failing(*args, **options):
        raise UserError("x.png: bad")
        yield

    monkeypatch.setattr(pipeline, "train_batches", failing)
    with pytest.raises(UserError, match="x.png: bad"):
        train.train(config, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
