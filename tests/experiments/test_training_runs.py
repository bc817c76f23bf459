"""What a training run keeps, refuses and survives: checkpoints, locks, stops, data."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from experiments import train
from experiments.shared import training_run
from segjax import checkpoint, checkpoint_scores, training
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data.workers import WorkerDied
from segjax.errors import UserError
from segjax.workdir import read_metrics


def changed(config, **fields):
    """A copy with other values; ``optim__lr`` is the field ``optim.lr``."""
    config = config_lib.make(**config_lib.json_like(config))
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in fields.items()}
    )
    return config


def write_data(root: Path) -> Path:
    """Six images of 16 x 16 px with three classes; the last two for validation."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(6):
        mask = np.zeros((16, 16), np.uint8)
        mask[8:], mask[:, 10:] = 1, 2
        image = rng.integers(0, 255, (16, 16, 3), np.uint8)
        cv2.imwrite(str(root / f"images/i{i}.png"), image)
        cv2.imwrite(str(root / f"masks/i{i}.png"), mask)
    (root / "val.txt").write_text("i4\ni5\n")
    (root / "classes.txt").write_text("sky\nwall\ngrass\n")
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny U-Net on six images: 4 steps, saved and evaluated after 2 and 4."""
    root = write_data(tmp_path_factory.mktemp("data") / "own")
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (2,)},
        data={"name": "folder", "root": str(root)},
        batch_size=4,
        eval_batch_size=4,
        total_steps=4,
        eval_every=2,
        eval_images=0,
        save_every=2,
        log_every=1,
        threads=1,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Its workdir, for reading only."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    assert train.train(config, workdir) == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy to change."""
    return shutil.copytree(trained, tmp_path / "run")


def saved_steps(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def arrays(workdir, config, step):
    """The parameters of a checkpoint."""
    parts = training_run.build_run(config)
    state = training_run.abstract_state(
        config, parts.init, image_shape=(*parts.augment.crop, 3), mesh=parts.mesh
    )
    abstract = {"params": state.params, "batch_stats": state.batch_stats}
    found, _ = checkpoint.restore_model(workdir / "checkpoints", step, abstract)
    return jax.device_get(found)


# Which checkpoints stay


def test_the_latest_and_the_best_checkpoint_stay(config, tmp_path, monkeypatch, capsys):
    scores = iter([0.1, 0.5, 0.3, float("nan"), 0.2, 0.6])
    real = train.metrics.scores
    monkeypatch.setattr(
        train.metrics, "scores", lambda h: real(h) | {"miou": next(scores)}
    )
    options = changed(config, eval_every=1, keep=1, total_steps=5)
    assert train.train(options, tmp_path) == 0
    assert saved_steps(tmp_path) == [2, 5]
    assert checkpoint_scores.scores(tmp_path / "checkpoints") == {2: 0.5, 5: 0.2}
    assert checkpoint_scores.find(tmp_path, "best") == (tmp_path / "checkpoints", 2)
    assert checkpoint_scores.find(tmp_path, "latest") == (tmp_path / "checkpoints", 5)
    assert "best validation mIoU 0.5000 at step 2" in capsys.readouterr().err
    # The best score so far is known to a run that continues.
    assert train.train(changed(options, total_steps=6), tmp_path) == 0
    assert checkpoint_scores.find(tmp_path, "best")[1] == 6
    assert "best validation mIoU 0.6000 at step 6" in capsys.readouterr().err


def to_earlier_version(run, miou):
    """Checkpoint 2 as the best one, as earlier versions kept it; no scores."""
    (run / "best").mkdir()
    shutil.move(run / "checkpoints/2", run / "best/2")
    for metrics in (*run.glob("checkpoints/*/metrics"), run / "best/2/metrics"):
        shutil.rmtree(metrics)
    meta = run / "best/2/meta/metadata"
    values = json.loads(meta.read_text())
    del values["crc"]
    meta.write_text(json.dumps(values | {"extra": {"miou": miou}}))
    (run / "splits.json").unlink()


def test_the_best_checkpoint_of_an_earlier_version_is_found_and_adopted(config, run):
    to_earlier_version(run, 0.9)
    assert checkpoint_scores.find(run, "best") == (run / "best", 2)
    assert checkpoint_scores.find(run, "2") == (run / "best", 2)
    assert checkpoint_scores.find(run, "4") == (run / "checkpoints", 4)
    assert train.train(changed(config, total_steps=6, keep=1), run) == 0
    assert not (run / "best").exists() and saved_steps(run) == [2, 6]
    assert checkpoint_scores.find(run, "best") == (run / "checkpoints", 2)
    # One that is there already only gets its score.
    (run / "best").mkdir()
    shutil.copytree(run / "checkpoints/2", run / "best/2")
    checkpoint_scores.tidy(run)
    assert not (run / "best").exists() and 2 in checkpoint_scores.scores(
        run / "checkpoints"
    )


def test_a_damaged_score_or_description_costs_no_more_than_itself(config, run, caplog):
    """A flipped array name is damage, not another model."""
    (run / "checkpoints/2/metrics/metrics").write_text("{")
    meta = run / "checkpoints/4/meta/metadata"
    meta.write_text(meta.read_text().replace("head/bias", "head/bjas", 1))
    assert train.train(config, run) == 0
    text = " ".join(caplog.messages)
    assert "checkpoints/2/metrics/metrics: is not valid JSON" in text
    assert "checkpoints/4 is damaged (its description does not match its che" in text
    assert saved_steps(run) == [2, 4]
    steps = [row["step"] for row in read_metrics(run) if "loss" in row]
    assert steps == [1, 2, 3, 4]


# Stopping


def test_a_stop_during_an_evaluation_saves_at_once(config, trained, tmp_path):
    """13 batches each; the signal comes with the first one of the second evaluation."""
    root = tmp_path / "data"
    shutil.copytree(config.data.root, root)
    names = [f"v{i}" for i in range(48)]
    for name in names:
        for folder in ("images", "masks"):
            shutil.copy(root / folder / "i4.png", root / folder / f"{name}.png")
    (root / "val.txt").write_text("\n".join(["i4", "i5", *names]))
    config = changed(config, data__root=str(root))
    make, batches = train.evaluation.make_eval_step, []

    def make_eval_step(*args):
        step = make(*args)

        def counting(variables, batch):
            batches.append(1)
            if len(batches) == 14:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(variables, batch)

        return counting

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.evaluation, "make_eval_step", make_eval_step)
        assert train.train(config, run) == train.STOPPED
    assert len(batches) < 20
    assert saved_steps(run) == [2, 4]
    assert sorted(checkpoint_scores.scores(run / "checkpoints")) == [2]
    rows = [row for row in read_metrics(run) if "val_miou" in row]
    assert [row["step"] for row in rows] == [2]
    # Started again, it evaluates what it had left out; the parameters are the same.
    assert train.train(config, run) == 0
    rows = [row for row in read_metrics(run) if "val_miou" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert sorted(checkpoint_scores.scores(run / "checkpoints")) == [2, 4]
    assert workdir_lib.read_validation(run)["step"] == 4
    expected = arrays(trained, config, 4)
    jax.tree.map(np.testing.assert_array_equal, arrays(run, config, 4), expected)
    # And again: nothing is left to do.
    before = (run / "metrics.jsonl").read_bytes()
    assert train.train(config, run) == 0
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_dead_worker_costs_no_step(config, tmp_path, monkeypatch, log_every):
    """What was trained is saved, and continued to the same bits."""
    real = training_run.train_batches

    class Dying:
        def __init__(self, *args, **kwargs):
            self.batches, self.left = real(*args, **kwargs), 3

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                raise WorkerDied("a worker process was killed by SIGKILL")
            self.left -= 1
            return next(self.batches)

        def close(self):
            self.batches.close()

    options = changed(config, save_every=100, eval_every=0, log_every=log_every)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train.train(options, whole) == 0
    monkeypatch.setattr(training_run, "train_batches", Dying)
    with pytest.raises(UserError, match=r"killed by SIGKILL; last checkpoint: step 1:"):
        train.train(options, run)
    assert saved_steps(run) == [1]
    monkeypatch.setattr(training_run, "train_batches", real)
    assert train.train(options, run) == 0
    expected = arrays(whole, options, 4)
    jax.tree.map(np.testing.assert_array_equal, arrays(run, options, 4), expected)


# Other data than before


def refused(pattern, config, run):
    before = {
        path: path.read_bytes() for path in run.iterdir() if path.suffix == ".json"
    }
    with pytest.raises(UserError, match=pattern) as caught:
        train.train(config, run)
    assert "\n" not in str(caught.value)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_exchanged_class_names_are_refused(config, run, tmp_path):
    root = shutil.copytree(config.data.root, tmp_path / "data")
    other = changed(config, data__root=str(root), total_steps=5)
    (root / "classes.txt").write_text("sky\ngrass\nwall\n")
    refused("with class 1 named 'wall', but in folder it is 'grass': list", other, run)
    (root / "classes.txt").write_text("sky\nwall\ngrass\n")
    assert train.train(other, run) == 0  # another place is fine


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "moved"])
def test_other_images_than_before_are_refused(config, run, tmp_path, change):
    root = shutil.copytree(config.data.root, tmp_path / "data")
    other = changed(config, data__root=str(root), total_steps=5)
    for folder in (root / "images", root / "masks"):
        if change == "added":
            shutil.copy(folder / "i1.png", folder / "i11.png")
        elif change == "removed":
            (folder / "i1.png").unlink()
        elif change == "renamed":
            (folder / "i1.png").rename(folder / "i9.png")
    if change == "moved":
        (root / "val.txt").write_text("i3\ni5\n")
    number = {"added": 5, "removed": 3}.get(change, 4)
    refused(
        f"split 'train'.*4 then, {number} now.*--config.init_from={run}", other, run
    )


def test_files_of_a_run_are_only_written_when_they_change(config, run):
    times = {name: (run / name).stat().st_mtime_ns for name in ("dataset.json",)}
    again = changed(config, log_every=2)
    assert train.train(again, run) == 0
    assert times == {name: (run / name).stat().st_mtime_ns for name in times}
    assert config_lib.load(run / "config.json").log_every == 2
    (run / "dataset.json").write_text("")
    with pytest.raises(UserError, match=f"{run}/dataset.json: is empty; expected"):
        train.train(again, run)


# One training at a time


def test_a_second_training_in_a_workdir_is_refused(config, run):
    """The first one is another process, which is named."""
    holder = (
        "import sys, pathlib, segjax.workdir as w\n"
        f"with w.hold(pathlib.Path({str(run)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout.readline() == b"held\n"
        refused(f"{run}: process {process.pid} on .* trains there: wait", config, run)
    finally:
        process.communicate()
    assert train.train(config, run) == 0


def test_a_job_that_holds_the_lock_passes_it_on(config, run, monkeypatch):
    with workdir_lib.lock(run) as file:
        refused("trains there", config, run)
        monkeypatch.setenv(workdir_lib.LOCK_VARIABLE, str(file.fileno()))
        assert train.train(config, run) == 0
    with open(os.devnull) as other:  # not the file of this run
        monkeypatch.setenv(workdir_lib.LOCK_VARIABLE, str(other.fileno()))
        with workdir_lib.lock(run):
            refused("trains there", config, run)


def test_a_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run: cannot be written \(.*\): choose"):
        train.train(config, tmp_path / "file/run")


# Diverged runs


def test_what_a_state_of_no_use_is():
    def state(params=1.0, stats=1.0, optimizer=1.0):
        return training.TrainState(
            step=np.int32(7),
            params={"a": np.zeros(2, np.float32), "b": np.float32([1, params])},
            batch_stats={"mean": np.float32([stats])},
            opt_state={"m": np.float32([optimizer]), "count": np.int32(3)},
        )

    assert training_run.divergence(state()) == ""
    assert training_run.divergence(state(-1e10, 1e10, 1e30)) == ""
    for bad in (float("nan"), float("inf"), -float("inf"), -3e37):
        assert "the largest weight is" in training_run.divergence(state(bad))
        assert "batch statistic is" in training_run.divergence(state(stats=bad))
    for bad in (float("nan"), -float("inf")):
        text = training_run.divergence(state(optimizer=bad))
        assert "value of the optimizer's state is" in text and "at step 7" in text


def test_the_advice_after_divergence_works(config, run, tmp_path, monkeypatch, capsys):
    real = training_run.divergence
    monkeypatch.setattr(
        training_run,
        "divergence",
        lambda state: "it diverged" if int(state.step) == 6 else real(state),
    )
    assert train.train(changed(config, total_steps=6), run) == train.DIVERGED
    assert saved_steps(run) == [2, 4]
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert f"it diverged; last good checkpoint: {run}/checkpoints/4;" in line
    start = f"--config.init_from={run}"
    assert f"another --workdir with {start} and a lower --config.optim.lr" in line
    again = changed(config, init_from=str(run), optim__lr=1e-4, total_steps=1)
    assert train.train(again, tmp_path / "again") == 0


def test_a_run_that_is_longer_already_is_not_called_finished(config, run):
    message = "trained for 4 steps, this command has --config.total_steps=3: give at"
    with pytest.raises(UserError, match=message):
        train.train(changed(config, total_steps=3), run)
    assert config_lib.load(run / "config.json").total_steps == 4


# Other options


def test_a_profile_of_early_steps(config, tmp_path):
    assert train.train(changed(config, total_steps=6), tmp_path, profile=True) == 0
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_flags_of_the_program_reach_the_training(config, tmp_path, monkeypatch):
    values = {"_CONFIG": config, "_WORKDIR": str(tmp_path / "run"), "_PROFILE": True}
    for name, value in values.items():
        flag = types.SimpleNamespace(value=value)
        monkeypatch.setattr(train, name, flag, raising=False)
    calls = []

    def capture(*args, **kwargs):
        calls.append((args, kwargs))
        return train.DIVERGED

    monkeypatch.setattr(train, "train", capture)
    monkeypatch.setattr(train, "Peers", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(train.cli, "start", lambda **_: None)
    monkeypatch.setattr(train.cli, "flag_value", lambda name: "configs/quickstart.py")
    assert train.main([]) == train.DIVERGED
    assert calls == [((config, tmp_path / "run"), {"profile": True})]


def test_fields_reach_the_input_pipeline(config, monkeypatch):
    calls = []
    monkeypatch.setattr(
        training_run.pipeline,
        "train_batches",
        lambda *args, **kwargs: calls.append((args, kwargs)),
    )
    options = changed(config, workers=3, threads=5, batch_size=8, seed=6)
    training_run.train_batches(options, "source", augment="augment", start=7)
    expected = {"batch_size": 8, "seed": 6, "start": 7, "process": (0, 1)}
    expected |= {"workers": 3, "threads": 5, "mixture": None}
    assert calls == [(("source", "augment"), expected)]


def test_epochs_become_steps(config, tmp_path):
    """Four training images in batches of four: an epoch is a step."""
    assert train.train(changed(config, total_epochs=3.0), tmp_path) == 0
    assert saved_steps(tmp_path)[-1] == 3
    rows = [row for row in read_metrics(tmp_path) if "loss" in row]
    assert rows[-1]["lr"] == pytest.approx(0.01 * (1 - 2 / 3) ** 0.9)
