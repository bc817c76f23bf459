"""Runs in a bucket of a storage server on this machine."""

import datetime
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import cv2
import image_folders
import kill
import numpy as np
import pytest
import storage_server
import workdirs
from test_resume import free_port

from experiments import (
    boxsup,
    evaluate,
    export,
    import_weights,
    predict,
    pseudo_labels,
    quickstart,
    report,
    train,
)
from experiments import prepare as prepare_program
from experiments.shared import prediction_files
from experiments.shared.training_log import TrainingLog
from experiments.sweeps import runs as sweep_runs
from segjax import (
    bucket_lock,
    bucket_mirror,
    buckets,
    checkpoint,
    checkpoint_scores,
    files,
    metrics,
    writer,
)
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets, images, prepare, shards
from segjax.errors import Unavailable, UserError
from segjax.training import TrainState

BUCKET = f"gs://{storage_server.BUCKET}"


@pytest.fixture(scope="module")
def server():
    with storage_server.running() as server:
        yield server


def test_files_are_objects(server, tmp_path):
    path = files.path(f"{BUCKET}/files/a.json")
    files.write_json(path, {"ä": 1})
    assert files.read_json(path, "a test") == {"ä": 1}
    with files.atomic_write(path.with_name("b.bin")) as partial:
        partial.write_bytes(b"12")
        assert "files/b.bin" not in server.names()
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.json", "b.bin"]
    continued = files.folder_on_disk(path.parent, continued=True)
    with pytest.raises(KeyboardInterrupt), continued as folder:
        assert (folder / "b.bin").read_bytes() == b"12"
        (folder / "b.bin").write_bytes(b"123")
        raise KeyboardInterrupt
    assert path.with_name("b.bin").read_bytes() == b"123"
    files.move_folder(path.parent, path.parent.with_name("moved"))
    assert [n for n in server.names() if n.endswith(".bin")] == ["moved/b.bin"]
    files.remove_folder(files.path(f"{BUCKET}/moved"))
    assert not server.names()
    with pytest.raises(UserError, match=r"^gs://bucket/files/a.json: .*No such object"):
        files.read_text(path, "a test")
    with pytest.raises(UserError, match="gs://none/x: .* no bucket 'none'"):
        files.write_text("gs://none/x", "")
    assert files.absolute("~/x") == Path.home() / "x"
    with pytest.raises(UserError, match="found a URL"):
        files.path("s3://bucket/x")


def test_the_newest_start_has_a_run(server):
    run = files.path(f"{BUCKET}/lock")
    with bucket_lock.hold(run / "lock") as first:
        first()
        with bucket_lock.hold(run / "lock") as second:
            second()
            with pytest.raises(UserError, match=r"gs://bucket/lock: process \d+ on "):
                first()
    with pytest.raises(UserError, match="^bad"), bucket_lock.hold(run / "lock"):
        raise UserError("bad")  # it has ended, and says so
    assert "lock/lock" not in server.names()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ABORTED: All 32 retry attempts failed: Service Unavailable"),
        aiohttp.ClientConnectionError("connection lost"),
    ],
)
def test_a_storage_that_does_not_answer_damages_no_checkpoint(error, monkeypatch):
    manager = SimpleNamespace(directory=f"{BUCKET}/checkpoints", all_steps=lambda: [1])

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "_restore", fail)
    monkeypatch.setattr(checkpoint, "_set_aside", None)
    abstract = TrainState(step=0, params={}, batch_stats={}, opt_state={})
    with pytest.raises(Unavailable, match="^gs://bucket/checkpoints/1: the storage"):
        checkpoint.restore_latest(manager, abstract)


def test_objects_that_stand_for_folders_are_no_files(monkeypatch):
    entry = {"size": 0, "mtime": datetime.datetime.now(datetime.UTC)}
    names = ("b/data/", "b/data/sub/", "b/data/sub/a.png")
    system = SimpleNamespace(find=lambda *_, **__: dict.fromkeys(names, entry))
    monkeypatch.setattr(buckets, "_file_system", lambda: system)
    assert list(buckets.find("gs://b/data")) == ["sub/a.png"]


def test_log_files_are_seen_while_training_runs(server, monkeypatch):
    """Also what is too large to be uploaded again and again; and a resumed run."""
    run = files.path(f"{BUCKET}/log")
    monkeypatch.setattr(writer, "EVENTS_BYTES", 2000)
    log = writer.Writer(run, 0)
    for step in (1, 2):
        log.scalars(step, {"loss": 1.0})
        noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
        log.picture(step, "noise", noise)
    assert workdir_lib.read_metrics(run) == []  # it is not yet time
    log.sync()
    assert [row["step"] for row in workdir_lib.read_metrics(run)] == [1, 2]
    monkeypatch.setattr(writer, "UPLOAD_SECONDS", 0)
    log.scalars(3, {"loss": 1.0})
    events = sorted((run / "tensorboard").iterdir())
    assert len(events) == 2 and events[0].stat().length > 2000
    assert [row["step"] for row in workdir_lib.read_metrics(run)] == [1, 2, 3]
    resumed = writer.Writer(run, 2)  # after a kill
    assert [row["step"] for row in workdir_lib.read_metrics(run)] == [1, 2]
    resumed.close()
    log._file.close()
    log._board.close()
    log._temporary.cleanup()


def test_scores_are_in_the_bucket_before_they_are_in_the_checkpoint(server, config):
    run = files.path(f"{BUCKET}/scores")
    log = TrainingLog(config, run, start=0, evaluated=False)
    log.evaluation(1, dict.fromkeys(metrics.SCORES, 0.5), examples=[], info=None)
    assert workdir_lib.read_metrics(run)[0]["val_miou"] == 0.5
    log.close()


@pytest.fixture(scope="module")
def config():
    """A tiny U-Net on scenes: 3 steps, saved after each."""
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (2,)},
        data={"name": "scenes", "scenes_size": (32, 32), "scenes_train": 8}
        | {"scenes_validation": 4},
        batch_size=4,
        eval_batch_size=4,
        total_steps=3,
        eval_every=0,
        eval_images=1,
        save_every=1,
        keep=3,
        log_every=1,
        threads=1,
    )


# Orbax abandons its other reads when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_run_ends_with_the_bits_of_one_on_a_disk(
    server, config, tmp_path, monkeypatch
):
    """Killed while it saved its last checkpoint; and the one before is damaged."""
    config.data.data_dir = str(tmp_path / "data")
    disk, run = tmp_path / "run", files.path(f"{BUCKET}/runs/a")
    assert train.train(config, disk) == train.train(config, run) == 0
    assert (run / "tensorboard").is_dir() and not (run / "lock").exists()
    assert (run / "pictures/00000003_0.png").read_bytes().startswith(b"\x89PNG")
    checkpoints = run / "checkpoints"
    assert checkpoint_scores.steps(checkpoints) == [1, 2, 3]
    other = config.copy_and_resolve_references()
    other.seed = 7
    with bucket_lock.hold(run / "lock") as check:
        with pytest.raises(UserError, match="was trained with --config.seed"):
            train.train(other, run)
        check()  # what is refused takes nothing over
    (checkpoints / "3/commit_success.txt").unlink()
    assert checkpoint_scores.steps(checkpoints) == [1, 2]
    for data in (checkpoints / "2/model/d").iterdir():
        data.write_bytes(data.read_bytes()[:-30])
    monkeypatch.setattr(config_lib, "check_start", None)  # is of runs that begin
    assert train.train(config, run) == 0
    assert (checkpoints / "2.corrupt/commit_success.txt").exists()
    kill.assert_same_run(disk, run, 3)
    found = evaluate.evaluate(config, run)
    written = files.read_json(run / "evaluation/validation.json", "results")
    assert written["step"] == found["step"] == 3


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """A workdir without training."""
    folder = files.path(f"{BUCKET}/made/run")
    workdirs.make_run(folder, "unet", {"padding": "same", "widths": (2,)})
    return folder


def photos(folder):
    """Two images, the second one large enough to be predicted in parts."""
    for name, side in (("a", 24), ("b", 60)):
        pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return [str(folder / "a.png"), str(folder / "b.png")]


def test_predictions_are_those_of_a_disk_and_continue(run, server, tmp_path):
    pictures, config = photos(tmp_path), config_lib.load(run / "config.json")
    outputs = ("labels", "probabilities")
    options = dict(paths=pictures, outputs=outputs, max_pixels=1000)
    disk, bucket = tmp_path / "out", files.path(f"{BUCKET}/out")
    predict.predict(config, run, output=disk, **options)
    first = options | {"paths": pictures[:1]}
    assert predict.predict(config, run, output=bucket, **first)["written"] == 1
    assert predict.predict(config, run, output=bucket, **options)["already_done"] == 1
    for name in ("labels/a.png", "labels/b.png", "probabilities/b.npz"):
        assert (bucket / name).read_bytes() == (disk / name).read_bytes()
    assert (bucket / "done_0.jsonl").read_bytes() == (
        disk / "done_0.jsonl"
    ).read_bytes()


def test_export_and_states_of_runs(run, server, tmp_path):
    config = config_lib.load(run / "config.json")
    with files.folder_on_disk(files.path(f"{BUCKET}/exported")) as folder:
        export.export(config, run, output=folder, sizes=[(32, 32)], platforms=["cpu"])
    assert "exported/weights.npz" in server.names()
    assert sweep_runs.state(run, 7).kind == "interrupted"
    with bucket_lock.hold(run / "lock"):
        assert sweep_runs.state(run, 7).kind == "running"
    assert sweep_runs.state(run.with_name("none"), 7).kind == "missing"


def test_label_maps_of_others_are_not_written_over():
    """Two programs of this machine predict images of one name into buckets."""
    folder, how = files.path(f"{BUCKET}/a"), {"size": (2, 2), "dtype": np.uint8}
    with prediction_files.label_array(folder, "x", **how) as first:
        with prediction_files.label_array(folder, "x", **how) as second:
            second[:] = 1
        assert first.sum() == 0


def test_predictions_in_a_bucket_are_scored(server, config, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket_mirror, "HOME", str(tmp_path / "copies"))
    config.data.data_dir = str(tmp_path / "data")
    source, info = datasets.load(config.data, "validation")
    for i in range(len(source)):
        example = source[i]
        name = f"{BUCKET}/scored/labels/{example['id']}.png"
        images.write_palette_png(files.path(name), example["label"], info.palette)
    folder = files.path(f"{BUCKET}/scored")
    results = evaluate.evaluate_predictions(config, folder)
    assert results["scores"]["pixel_accuracy"] == 1
    assert (folder / "evaluation/validation.json").is_file()


@pytest.mark.parametrize(
    "program, values",
    [
        (quickstart, {"workdir": f"{BUCKET}/run"}),
        (boxsup, {"workdir": f"{BUCKET}/run"}),
        (prepare_program, {"check": "own", "output": f"{BUCKET}/run", "config": None}),
        (import_weights, {"output": f"{BUCKET}/a.safetensors"}),
        (report, {"results": f"{BUCKET}/a", "output": ""}),
    ],
)
def test_programs_that_write_to_folders_only_say_so(
    program, values, monkeypatch, tmp_path
):
    (tmp_path / "sweep.json").touch()
    given = type("Flags", (), {"FLAGS": SimpleNamespace(**values)})
    monkeypatch.setattr(program, "flags", given)
    with pytest.raises(UserError, match="found a URL; expected a path of this machine"):
        program.main(["program", str(tmp_path)])


def test_images_in_a_bucket_are_refused():
    with pytest.raises(UserError, match="^gs://b/a.png: found a URL; expected images"):
        images.list_images(["gs://b/a.png"])


def test_masks_are_made_by_one_process(monkeypatch):
    monkeypatch.setattr(pseudo_labels.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="^experiments.boxsup runs in one process"):
        pseudo_labels.check_alone("experiments.boxsup")


def test_a_profile_in_a_bucket_is_refused(monkeypatch):
    for name, value in {"_WORKDIR": f"{BUCKET}/run", "_PROFILE": True}.items():
        flag = type("Flag", (), {"value": value})
        monkeypatch.setattr(train, name, flag, raising=False)
    with pytest.raises(UserError, match="--profile .* folders of this machine"):
        train.main([])


def test_data_of_a_bucket_are_those_of_a_disk(server, tmp_path, monkeypatch):
    """Prepared by the first host, copied by the next; and a folder of raw files."""
    scenes = {"name": "scenes", "scenes_size": (32, 32), "scenes_train": 6}
    scenes |= {"scenes_seed": 0, "scenes_validation": 2, "data_dir": f"{BUCKET}/data"}
    disk, _ = datasets.load(scenes | {"data_dir": str(tmp_path / "d")}, "train")
    for host in ("a", "b"):
        monkeypatch.setattr(bucket_mirror, "HOME", str(tmp_path / host))
        source, _ = datasets.load(scenes, "train")
        assert datasets.fingerprint(source) == datasets.fingerprint(disk)
        np.testing.assert_array_equal(source[5]["image"], disk[5]["image"])
        uploaded = [name for name in server.names() if "array_record" in name]
        assert len(uploaded) == 2
        monkeypatch.setattr(shards, "write", None)  # it is not prepared again
    (raw,) = {name.split("/")[1] for name in server.names() if name[:5] == "data/"}
    assert raw == "scenes"
    (made,) = prepare.find_all(scenes)
    assert made.records == {"train": 6, "validation": 2} and made.bytes > 1000
    own = image_folders.make_folder(tmp_path / "own", image_folders.two_masks())
    image_folders.lists(tmp_path / "own", "a\n", "b\n")
    expected = datasets.load(own, "train")[0]
    buckets.upload_folder(tmp_path / "own", f"{BUCKET}/own")
    own["root"] = f"{BUCKET}/own"
    found = datasets.load(own, "train")[0]
    assert datasets.fingerprint(found) == datasets.fingerprint(expected)
    copy = tmp_path / "b/raw" / storage_server.BUCKET / "own/images/a.png"
    written = buckets.find(f"{BUCKET}/own")["images/a.png"].time_ns
    assert copy.stat().st_mtime_ns == written  # the same on every host
    buckets.remove(f"{BUCKET}/own")
    with pytest.raises(
        UserError, match="^--config.data.root: 'gs://bucket/own' is empty"
    ):
        datasets.load(own, "train")


ARGS = {"total_steps": 24, "eval_every": 0, "eval_images": 0, "save_every": 4}


def start_two(command, late=0.0):
    """Two processes of two devices each; the second starts ``late`` seconds later."""
    flags = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    first = kill.start([*command, *flags, "--process_id=0"], devices=2)
    time.sleep(late)
    return [first, kill.start([*command, *flags, "--process_id=1"], devices=2)]


@pytest.mark.slow
def test_two_processes_killed_and_an_outage_end_with_the_bits_of_a_disk(
    server, tmp_path
):
    """All of the issue: train, kill one host, resume through errors of the storage."""
    disk, run = tmp_path / "disk", files.path(f"{BUCKET}/two/run")
    data = {"data.data_dir": f"{BUCKET}/two/data"}
    for process in start_two(kill.command(disk, tmp_path, **ARGS)):
        kill.finish(process)
    training = kill.command(run, tmp_path, **ARGS, **data)
    processes = start_two(training)
    wait_for(lambda: checkpoint_scores.steps(run / "checkpoints"))
    processes[1].kill()
    kill.finish(processes[0], code=75)
    processes[1].communicate()
    processes = start_two(training)
    wait_for(lambda: (run / "lock").exists())
    server.down = True
    time.sleep(12)
    server.down = False
    for process in processes:
        log = kill.finish(process)
        assert "Traceback" not in log and "credentials" not in log, log
    assert server.refused > 3
    kill.assert_same_run(disk, run, 24)
    for workdir in (disk, run):
        for name, *arguments in (
            ("evaluate",),
            ("predict", "--split=validation", f"--output={workdir}/predictions"),
        ):
            program = [sys.executable, "-m", f"experiments.{name}", *arguments]
            for process in start_two([*program, "--workdir", str(workdir)]):
                kill.finish(process)
    names = [path.relative_to(disk) for path in disk.glob("predictions/labels/*")]
    assert len(names) == kill.TINY["data.scenes_validation"]
    for name in (*names, "evaluation/validation_images.csv"):
        assert (run / name).read_bytes() == (disk / name).read_bytes()


@pytest.mark.slow
def test_a_late_host_and_another_number_of_hosts_end_with_the_same_losses(
    server, tmp_path
):
    """Two hosts, one 20 s late, are preempted; one host with four devices goes on."""
    disk, run = tmp_path / "disk", files.path(f"{BUCKET}/late/run")
    args = ARGS | {"total_steps": 48}
    data = {"data.data_dir": f"{BUCKET}/late/data"}
    kill.finish(kill.start(kill.command(disk, tmp_path, **args), devices=4))
    training = kill.command(run, tmp_path, **args, **data)
    processes = start_two(training, late=20)
    wait_for(lambda: checkpoint_scores.steps(run / "checkpoints"))
    processes[1].terminate()
    for process in processes:
        kill.finish(process, code=75)
    step = max(checkpoint_scores.steps(run / "checkpoints"))
    assert step < 48
    log = kill.finish(kill.start(training, devices=4))
    assert f"continuing from step {step} of 48" in log
    expected, found = kill.losses(disk), kill.losses(run)
    assert sorted(found) == sorted(expected) == list(range(1, 49))
    # Sums of two hosts and of one may have another order.
    np.testing.assert_allclose(
        [found[i] for i in sorted(found)], [expected[i] for i in sorted(found)], 1e-4
    )
    print(f"stopped at {step}: largest difference", end=" ")
    print(max(abs(found[i] / expected[i] - 1) for i in found))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
