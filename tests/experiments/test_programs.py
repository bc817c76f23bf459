"""What a user of train, evaluate and predict sees: results, files and errors."""

import gc
import json
import re
import shutil
import signal
import sys

import cv2
import forked
import jax
import kill
import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, predict, train
from experiments.shared import initialization, prediction_files
from segjax import checkpoint_scores, sharding, weights
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.workdir import read_metrics


@pytest.fixture(scope="module", autouse=True)
def signals():
    """Training takes SIGINT and SIGTERM over; give them back to pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


def changed(config, **fields):
    """A copy with other values; ``optim__lr`` is the field ``optim.lr``."""
    config = config_lib.make(**config_lib.json_like(config))
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in fields.items()}
    )
    return config


SCENES = {"scenes_size": (48, 48), "scenes_train": 10, "scenes_validation": 4}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny U-Net on tiny scenes: 4 steps, saved and evaluated after 2 and 4."""
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4, 8)},
        data=SCENES | {"data_dir": str(tmp_path_factory.mktemp("data"))},
        augment={"crop": (32, 32), "scale": (0.7, 1.4)},
        optim={"name": "adam", "lr": 0.01},
        batch_size=4,
        eval_batch_size=4,
        total_steps=4,
        eval_every=2,
        eval_images=1,
        save_every=2,
        log_every=1,
        threads=1,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Its workdir, for reading only."""
    workdir = tmp_path_factory.mktemp("scenes") / "run"
    assert train.train(config, workdir) == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy to change."""
    return shutil.copytree(trained, tmp_path / "run")


# Own data: classes of one color each, masks as palette and as gray PNG, 255 = void.

COLORS = np.array([(30, 60, 200), (220, 40, 40), (40, 200, 60)], np.uint8)
TRAINING = {f"train{i}": (48, 40 + 8 * i) for i in range(5)}
VALIDATION = {"a": (33, 47), "b": (47, 33), "c": (40, 40), "d": (64, 50), "e": (35, 70)}


def write_folder(root, classes="sky\nwall\ngrass\n"):
    """Writes images, masks and lists; returns the masks by stem."""
    rng = np.random.default_rng(0)
    masks = {}
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, (stem, (h, w)) in enumerate((TRAINING | VALIDATION).items()):
        mask = np.zeros((h, w), np.uint8)
        mask[h // 2 :] = 1
        mask[:, w // 2 + rng.integers(-5, 5) :] = 2
        noise = rng.integers(-25, 25, (h, w, 3))
        image = np.clip(COLORS[mask] + noise, 0, 255).astype(np.uint8)
        mask[:3] = 255
        file = Image.fromarray(mask)
        if i % 2:
            # All 256 colors, or Pillow stores fewer than 8 bits of each index.
            file.putpalette(COLORS.tobytes().ljust(768, b"\0"))
        file.save(root / "masks" / f"{stem}.png")
        suffix = "jpg" if i % 3 == 0 else "png"
        Image.fromarray(image).save(root / "images" / f"{stem}.{suffix}")
        masks[stem] = mask
    (root / "val.txt").write_text("\n".join(VALIDATION))
    (root / "classes.txt").write_text(classes)
    return masks


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    return root, write_folder(root)


@pytest.fixture(scope="module")
def own_config(config, own):
    return changed(config, data__name="folder", data__root=str(own[0]), total_steps=2)


@pytest.fixture(scope="module")
def own_trained(own_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own_run")
    assert train.train(own_config, workdir) == 0
    return workdir


# What a run leaves behind


def test_every_step_and_evaluation_is_logged_once(trained):
    rows = read_metrics(trained)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    for row in steps:
        assert row.keys() == {
            *("step", "loss", "main_loss", "grad_norm", "lr"),
            *("images_per_second", "input_wait"),
        }
        assert all(np.isfinite(value) for value in row.values())
        assert row["lr"] == pytest.approx(0.01 * (1 - (row["step"] - 1) / 4) ** 0.9)
        assert 0 <= row["input_wait"] <= 1
    scores = [row for row in rows if "val_miou" in row]
    assert [row["step"] for row in scores] == [2, 4]
    for row in scores:
        names = ("val_pixel_accuracy", "val_mean_accuracy", "val_miou", "val_fwiou")
        assert row.keys() == {"step", *names}
        assert all(0 <= row[name] <= 1 for name in names)


def test_the_workdir_describes_the_run(config, trained):
    saved = json.loads((trained / "config.json").read_text())
    assert config_lib.make(**config_lib.json_like(saved)) == config
    info = json.loads((trained / "dataset.json").read_text())
    scenes = datasets.describe({"name": "scenes"})
    assert info["classes"] == list(scenes.classes) and info["channels"] == 3
    assert info["palette"] == scenes.palette.tolist()
    versions = json.loads((trained / "versions.json").read_text())
    assert versions["jax"] == jax.__version__ and versions["devices"].startswith("4 x")
    assert versions.keys() >= {"flax", "python", "git_commit", "command"}
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"2", "4"}
    scores = {
        row["step"]: row["val_miou"]
        for row in read_metrics(trained)
        if "val_miou" in row
    }
    assert checkpoint_scores.scores(trained / "checkpoints") == pytest.approx(scores)
    splits = json.loads((trained / "splits.json").read_text())
    assert {name: row["images"] for name, row in splits.items()} == {
        "train": 10,
        "validation": 4,
    }
    assert splits["train"]["fingerprint"] != splits["validation"]["fingerprint"]
    pictures = sorted(p.name for p in (trained / "pictures").iterdir())
    assert pictures == ["00000002_0.png", "00000004_0.png"]
    assert list((trained / "tensorboard").iterdir())


# Own data, from masks to scores


def test_own_folder_trains_with_config_overrides_only(own_trained):
    losses = [row["loss"] for row in read_metrics(own_trained) if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    info = workdir_lib.read_dataset(own_trained)
    assert info.classes == ("sky", "wall", "grass")


def reference_scores(confusion):
    """The definitions of FCN (section 4), spelled out."""
    k = len(confusion)
    total = confusion.sum()
    accuracy, iou, frequency = {}, {}, {}
    for i in range(k):
        right, truth = confusion[i, i], confusion[i].sum()
        union = truth + confusion[:, i].sum() - right
        frequency[i] = truth / total
        if truth:
            accuracy[i] = right / truth
        if union:
            iou[i] = right / union
    return {
        "pixel_accuracy": sum(confusion[i, i] for i in range(k)) / total,
        "mean_accuracy": sum(accuracy.values()) / len(accuracy),
        "miou": sum(iou.values()) / len(iou),
        "fwiou": sum(frequency[i] * iou[i] for i in iou),
    }


def test_evaluation_equals_scores_of_the_predicted_files(
    own, own_config, own_trained, tmp_path
):
    """Five sizes: images are padded to share programs, which no score may show."""
    root, masks = own
    results = evaluate.evaluate(own_config, own_trained, output=tmp_path)
    files = [str(p) for p in (root / "images").iterdir() if p.stem in VALIDATION]
    summary = predict.predict(own_config, own_trained, paths=files, output=tmp_path)
    assert (summary["written"], summary["failures"]) == (5, {})

    confusion = np.zeros((3, 3), np.int64)
    for stem in VALIDATION:
        file = Image.open(tmp_path / "labels" / f"{stem}.png")
        assert file.mode == "P"
        predicted, truth = np.asarray(file), masks[stem]
        assert predicted.shape == truth.shape and predicted.max() < 3
        for i in range(3):
            for j in range(3):
                confusion[i, j] += ((truth == i) & (predicted == j)).sum()
    assert results["confusion"] == confusion.tolist()
    assert results["scores"] == pytest.approx(reference_scores(confusion), abs=1e-12)
    majority = np.zeros_like(confusion)
    majority[:, confusion.sum(1).argmax()] = confusion.sum(1)
    baseline = reference_scores(majority)
    assert results["majority_baseline"] == pytest.approx(baseline, abs=1e-12)
    assert results["images"] == 5 and results["step"] == 2
    assert (
        json.loads((tmp_path / "validation.json").read_text())["scores"]
        == (results["scores"])
    )
    assert {p.name for p in tmp_path.glob("validation*")} == {
        *("validation.json", "validation_confusion.png", "validation_0.png"),
        *("validation_images.csv", *(f"validation_worst_{i}.png" for i in range(4))),
    }
    table = evaluate.table(results)
    assert f"{100 * results['scores']['miou']:.2f}" in table and "grass" in table


# Prediction


def test_predictions_have_the_size_of_each_image(config, trained, tmp_path):
    rng = np.random.default_rng(1)

    def noise(*shape, dtype=np.uint8):
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype)

    images = {
        "rgb.png": noise(48, 48, 3),
        "gray.png": noise(33, 61),
        "deep.png": noise(40, 30, 3, dtype=np.uint16),
        "deepgray.tif": noise(47, 31, dtype=np.uint16),
        "alpha.png": noise(50, 45, 4),
        "photo.jpg": noise(97, 64, 3),
        "tiny.bmp": noise(1, 2, 3),
    }
    for name, image in images.items():
        assert cv2.imwrite(str(tmp_path / name), image)
    output = tmp_path / "out"
    summary = predict.predict(config, trained, paths=[str(tmp_path)], output=output)
    assert (summary["written"], summary["failures"]) == (len(images), {})
    palette = datasets.describe({"name": "scenes"}).palette
    for name, image in images.items():
        stem = name.partition(".")[0]
        file = Image.open(output / "labels" / f"{stem}.png")
        ids = np.asarray(file)
        assert file.mode == "P" and ids.shape == image.shape[:2]
        assert ids.max() < len(palette)
        np.testing.assert_array_equal(
            np.asarray(file.convert("RGB")), palette[ids], err_msg=name
        )
        overlay = cv2.imread(str(output / "overlays" / f"{stem}.jpg"))
        assert overlay.shape == (*image.shape[:2], 3)


def test_equal_stems_get_different_names(config, trained, tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image_files.encode_png(image))
    folders = [str(tmp_path / "a"), str(tmp_path / "b"), f"{tmp_path}/./a/1.png"]
    summary = predict.predict(config, trained, paths=folders, output=tmp_path / "out")
    assert summary["written"] == 3
    names = {p.name for p in (tmp_path / "out/labels").iterdir()}
    assert names == {"a_1.png", "b_1.png", "b_2.png"}
    same = prediction_files.output_names(["x/1.jpg", "x/1.png"])
    assert same == {"x/1.jpg": "1_jpg", "x/1.png": "1_png"}


def test_predict_names_corrupt_images_and_does_the_rest(trained, tmp_path):
    """The whole program: exit code 1, and nothing on the terminal but our own lines."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    png = image_files.encode_png(image)
    for name, data in {
        "good1.png": png,
        "cut.png": png[:1000],
        "text.jpg": b"no image",
        "good2.png": png,
    }.items():
        (pictures / name).write_bytes(data)
    output = tmp_path / "out"
    process = kill.fork(
        [
            *(sys.executable, "-m", "experiments.predict", "--compilation_cache="),
            *("--workdir", str(trained), "--output", str(output), str(pictures)),
        ]
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip()]
    assert lines[0].startswith("process 0/1, 1 of 1 devices")
    bars = [line for line in lines if line.startswith("predict:")]
    failed = [line for line in lines if line.startswith("failed: ")]
    assert len(lines) == 1 + len(bars) + len(failed), err
    assert sorted(line.split()[1] for line in failed) == [
        f"{pictures / 'cut.png'}:",
        f"{pictures / 'text.jpg'}:",
    ]
    assert out.startswith("2 images segmented, 0 there already, 2 failed; ")
    assert out.endswith(f"0 compiled after warm-up; results in {output}\n")
    names = {p.name for p in (output / "labels").iterdir()}
    assert names == {"good1.png", "good2.png"}


# Bad input


def fails(pattern, call, *args, **options):
    """The call raises a UserError of one line that matches."""
    with pytest.raises(UserError, match=pattern) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


def test_wrong_model_name(config, tmp_path):
    message = (
        "--config.model_name: unknown value 'unett'; did you mean 'unet'.*fcn.* unet"
    )
    with pytest.raises(UserError, match=message):
        config_lib.make(model_name="unett")
    fails(message, train.train, changed(config, model_name="unett"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_a_config_file():
    message = "--config.optim: unknown value 'momentun'; did you mean 'momentum'"
    with pytest.raises(UserError, match=message):
        config_lib.make(optim={"momentun": 0.9})
    message = "--config.model: unknown value 'witdhs'; did you mean 'widths'"
    with pytest.raises(UserError, match=message):
        config_lib.make(model_name="unet", model={"witdhs": (4, 8)})


def test_another_number_of_classes_than_the_checkpoint(own_config, config, run):
    data = {"data__name": "folder", "data__root": own_config.data.root}
    message = "trained on scenes with 9 classes, but folder has 3: use data with"
    fails(message, evaluate.evaluate, changed(config, **data), run)
    fails(message, train.train, changed(config, **data), run)
    fails(
        "head/bias has shape .9,., the model expects .3,.",
        load_model,
        config,
        run,
        info=workdir_lib.read_dataset(run)._replace(classes=("a", "b", "c")),
        which="best",
        mesh=sharding.make_mesh(),
    )


@pytest.mark.parametrize("name", ["folder", "camvid", "isbi2012"])
def test_missing_dataset_folder(config, tmp_path, name):
    root, workdir = tmp_path / "nowhere", tmp_path / "run"
    bad = changed(config, data__name=name, data__root=str(root))
    fails(f"{root}.*expected", train.train, bad, workdir)
    fails("is empty", train.train, changed(bad, data__root=""), workdir)
    assert not workdir.exists()


def test_mask_value_out_of_range(own_config, tmp_path):
    write_folder(tmp_path / "data", classes="sky\nwall\n")
    bad = changed(own_config, data__root=str(tmp_path / "data"))
    fails(
        r"masks/\w+\.png: holds the value 2, expected 0\.\.1",
        train.train,
        bad,
        tmp_path / "run",
    )


def test_corrupt_training_image(own_config, tmp_path):
    """Its header is whole, so that only reading it shows the damage."""
    write_folder(tmp_path / "data")
    photo = tmp_path / "data/images/train0.jpg"
    data = bytearray(image_files.encode_png(image_files.decode_image(photo)))
    photo.unlink()
    image = photo.with_suffix(".png")
    data[data.index(b"IDAT") + 9] ^= 1  # now its checksum is wrong
    image.write_bytes(data)
    bad = changed(own_config, data__root=str(tmp_path / "data"), eval_every=0)
    fails(f"{image}: cannot be decoded", train.train, bad, tmp_path / "run")


# Orbax leaves its other reads of the damaged files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_truncated_checkpoint(config, run):
    for data in (run / "checkpoints/4/model").rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    message = f"checkpoint {run}/checkpoints/4 is damaged .*others there: .2."
    fails(message, evaluate.evaluate, config, run, checkpoint="latest")
    results = evaluate.evaluate(config, run, checkpoint="2")
    assert results["step"] == 2
    gc.collect()


def test_which_checkpoint(config, run):
    for which, message in (
        ("bset", "--checkpoint=bset: expected 'best'"),
        ("7", r"no checkpoint of step 7 .*\[2, 4\]"),
    ):
        fails(message, evaluate.evaluate, config, run, checkpoint=which)
    for step, score in ((2, 0.9), (4, 0.1)):
        file = run / f"checkpoints/{step}/metrics/metrics"
        assert file.exists()
        file.write_text(json.dumps({"miou": score}))
    assert evaluate.evaluate(config, run)["step"] == 2
    for metrics in run.glob("checkpoints/*/metrics"):
        shutil.rmtree(metrics)
    assert evaluate.evaluate(config, run)["step"] == 4
    (run / "dataset.json").unlink()
    fails("dataset.json: cannot be read", evaluate.evaluate, config, run)


def test_fields_are_checked_before_any_work(config, run, tmp_path):
    bad = changed(config, eval_batch_size=0)
    fails("eval_batch_size is 0", evaluate.evaluate, bad, run)
    where = {"paths": ["x.png"], "output": tmp_path}
    fails("eval_batch_size is 0", predict.predict, bad, run, **where)
    bad = changed(config, eval_batch_size=6)
    fails("eval_batch_size=6.*4 devices.* such as 4", evaluate.evaluate, bad, run)
    fails("no split 'test'", evaluate.evaluate, config, run, split="test")
    where["paths"] = ["nowhere"]
    fails("nowhere: no image", predict.predict, config, run, **where)
    file = tmp_path / "file"
    file.touch()
    where = {"paths": [str(run / "pictures")], "output": file}
    fails("--output", predict.predict, config, run, **where)
    fails("--output", evaluate.evaluate, config, run, output=file)


def test_full_disk(trained, config, tmp_path):
    """The whole program, unable to write files as large as those of a checkpoint."""
    run = shutil.copytree(trained, tmp_path / "run")
    values = {"total_steps": 40, "log_every": 4, "eval_every": 0}
    limited = (
        "import jax, resource, runpy;"
        "jax.config.update('jax_enable_compilation_cache', False);"
        "limit = resource.RLIMIT_FSIZE, (8192, 8192);"
        "resource.setrlimit(*limit); runpy.run_module('experiments.train', "
        "run_name='__main__', alter_sys=True)"
    )
    process = kill.fork(
        [
            *(sys.executable, "-c", limited, "--compilation_cache="),
            *("--config", write_config(tmp_path, config), "--workdir", str(run)),
            *(f"--config.{key}={value}" for key, value in values.items()),
        ]
    )
    err = kill.finish(process, code=2)
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip()]
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert lines[-1] == error and len(error) < 600
    assert f"in {run}/checkpoints (" in error and "GB free)" in error
    assert "last good checkpoint: 4; free some space and start the same" in error
    assert "Traceback" not in err


def write_config(folder, config):
    """A config file that returns this config."""
    values = config_lib.json_like(config)
    path = folder / "config.py"
    path.write_text(
        "from segjax.config import make\n\n\n"
        f"def get_config(arg=''):\n    return make(**{values!r})\n"
    )
    return str(path)


# Resuming


def test_a_changed_learning_rate_is_refused_but_not_how_often_is_logged(config, run):
    other = changed(config, optim__lr=0.5)
    message = (
        f"{run} was trained with --config.optim.lr=0.01, this command has 0.5: use"
    )
    fails(message, train.train, other, run)
    assert json.loads((run / "config.json").read_text())["optim"]["lr"] == 0.01
    before = read_metrics(run)
    again = changed(config, log_every=2, total_steps=6, eval_every=0)
    assert train.train(again, run) == 0
    rows = read_metrics(run)
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows[len(before) :]] == [6, 6]
    assert json.loads((run / "config.json").read_text())["log_every"] == 2


# Other ways to train


def test_bfloat16_and_accumulated_batches(config, tmp_path):
    """Half precision is for computing only: all that is learned stays float32."""
    half = changed(config, model__dtype="bfloat16", total_steps=2, eval_images=0)
    half = changed(half, batch_size=8, grad_accum_steps=2)
    assert train.train(half, tmp_path) == 0
    losses = [row["loss"] for row in read_metrics(tmp_path) if "loss" in row]
    assert len(losses) == 2 and all(np.isfinite(losses))
    arrays = kill.final_arrays(tmp_path, 2)
    kinds = {a.dtype for name, a in arrays.items() if name.startswith("model")}
    assert kinds == {np.dtype(np.float32)} and len(arrays) > 10
    message = "batch_size=8 .*4 devices in 4 micro-batches.*multiple of 16"
    fails(message, train.train, changed(half, grad_accum_steps=4), tmp_path)
    bad = changed(half, grad_accum_steps=3)
    fails("grad_accum_steps is 3; expected a divisor of", train.train, bad, tmp_path)


# The command line

TRAIN = ("train", "--config=configs/quickstart.py", "--workdir=/tmp/never")
BAD_COMMANDS = {
    # command: what its one line says
    (
        *TRAIN,
        "--config.model.widhts=4,8",
    ): "--config.model.widhts: .* did you mean 'wid",
    (*TRAIN, "--config.lr=1"): "--config.lr: .* did you mean .*config.optim.lr",
    (*TRAIN, "--config.optim.rate=1"): "--config.optim.rate: .*: b2, clip_norm, de",
    (*TRAIN, "--config.optim.lr.x=1"): "config.optim.lr is a value",
    (*TRAIN, "--config.optim=1"): "--config.optim is a group of fields",
    (*TRAIN, "--config.optim.lr=fast"): "--config.optim.lr=fast: could not convert",
    (*TRAIN, "--config.batch_size=4.5"): "--config.batch_size=4.5",
    (*TRAIN, *("--config.augment.crop=9,9",) * 2): "--config.augment.crop is given tw",
    (
        *TRAIN,
        "--confg.seed=1",
    ): "flag --confg.seed; did you mean --config.seed?",
    (*TRAIN, "32"): "unexpected argument '32'",
    ("train",): "--config and --workdir must be given",
    ("train", "--config=configs/quikstart.py"): "no such file; configs holds",
    ("train", "--config=FOLDER/syntax.py"): "syntax.py: SyntaxError: .*line 2",
    ("train", "--config=FOLDER/name.py"): "name.py: line 2: NameError: name 'make'",
    (
        "train",
        "--config=FOLDER/model.py",
    ): "model.py: --config.model_name: .*'unett'; did",
    ("evaluate",): "--workdir must be given",
    ("evaluate", "--workdir=FOLDER"): "FOLDER/config.json not found: give a workdir",
    ("evaluate", "--workdir=RUN", "--config.modl.widths=1"): "did you mean .*mo",
    (
        "evaluate",
        "--workdir=RUN",
        "--config=x.py",
    ): "--config: the config of the run ",
    ("evaluate", "--workdir=RUN", "test"): "unexpected argument 'test'",
    ("predict", "--workdir=RUN", "x.png"): "--output must be given",
    ("predict", "--workdir=RUN", "--output=FOLDER"): "no images given",
    ("evaluate", "--predictions=FOLDER", "--config=configs/quickstart.py", "--flip"): (
        "--flip says how to predict: leave it or --predictions out"
    ),
    ("evaluate", "--config=configs/quickstart.py"): "is read from --workdir",
    ("evaluate", "--workdir=RUN", "--allow_missing"): "is for --predictions",
}


@pytest.fixture(scope="module")
def commands(trained, tmp_path_factory):
    """Code, stdout and stderr of each of BAD_COMMANDS, and of two calls for help."""
    folder = tmp_path_factory.mktemp("commands")
    body = "def get_config(arg=''):\n    return make("
    (folder / "syntax.py").write_text(body)
    (folder / "name.py").write_text(body + ")\n")
    imported = "from segjax.config import make\n"
    (folder / "model.py").write_text(imported + body + "model_name='unett')\n")
    commands = [*BAD_COMMANDS, ("train", "--help"), ("evaluate", "--help")]
    places = {"FOLDER": str(folder), "RUN": str(trained)}

    def place(text):
        return re.sub("FOLDER|RUN", lambda match: places[match[0]], text)

    results = {}
    for command in commands:
        argv = ["-m", f"experiments.{command[0]}", *map(place, command[1:])]
        results[command] = forked.run(argv, kill.environment(1))
    return results, place


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=" ".join)
def test_a_wrong_command_is_answered_in_one_line(commands, command):
    results, place = commands
    code, out, err = results[command]
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    expected = place(BAD_COMMANDS[command])
    assert expected in err or re.search(expected, err), err


def test_training_starts_from_imported_weights(config, trained, tmp_path, capsys):
    """A rate of 0 keeps what the file holds; the head has other classes."""
    pytest.importorskip("safetensors")
    info = workdir_lib.read_dataset(trained)
    mesh = sharding.make_mesh()
    _, variables, _ = load_model(config, trained, info=info, which="latest", mesh=mesh)
    arrays = weights.flatten(jax.device_get(variables))
    arrays["params/head/kernel"] = arrays["params/head/kernel"][..., :5]
    arrays["params/head/bias"] = arrays["params/head/bias"][:5]
    path = tmp_path / "weights.safetensors"
    heads = ("params/head/kernel", "params/head/bias")
    facts = initialization.model_info(config)
    weights.save(path, weights.Weights(arrays, facts, "test", 5, heads))

    run = tmp_path / "run"
    changes = {"init_from": str(path), "optim__lr": 0.0, "total_steps": 1}
    changes["model__bn_momentum"] = 1.0  # the step keeps the statistics, too
    assert train.train(changed(config, **changes), run) == 0
    assert "head (the weights are for 5 classes)" in capsys.readouterr().err
    _, started, _ = load_model(config, run, info=info, which="latest", mesh=mesh)
    for name, array in weights.flatten(jax.device_get(started)).items():
        if "/head/" not in name:
            np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(UserError, match="config.init_from is 'nowhere'"):
        train.train(changed(config, init_from="nowhere"), run / "new")


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_help(commands, program):
    code, out, err = commands[0][program, "--help"]
    assert (
        "--config.optim.lr=0.01  learning rate (0 or more, and finite in float32)"
        in out
    )
    assert (code, err) == (0, "")
    assert f"python -m experiments.{program}" in out
    assert {"--workdir:", "--compilation_cache:", "--distributed:"} <= set(out.split())
    assert len(out.splitlines()) < 400
