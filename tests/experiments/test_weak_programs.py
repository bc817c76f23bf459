"""experiments.pseudo_labels and experiments.boxsup: files, exit codes, training."""

import json
import shutil

import forked
import kill
import numpy as np
import pytest
import weak_folder
from image_folders import error_of
from PIL import Image
from weak_folder import masks

from experiments import boxsup as boxsup_program
from experiments import pseudo_labels as program
from experiments import train
from segjax import config as config_lib
from segjax.data import datasets, images
from segjax.errors import UserError
from segjax.labels import VOID
from segjax.ops import mean_field
from segjax.weak import boxsup, candidates, in_boxes, objects, pseudo_labels
from segjax.workdir import read_metrics

CRF = {"iterations": 2, "appearance_sigma_xy": 8.0, "appearance_weight": 4.0}


def make(root, steps=2, loss=None, crf=None, **data):
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4,)},
        data={"name": "folder", "root": str(root), **data},
        loss=loss or {},
        augment={"flip": 0.0},
        batch_size=4,
        total_steps=steps,
        optim={"name": "adam", "lr": 0.02, "schedule": "constant", "weight_decay": 0.0},
        crf=crf or CRF,
        eval_every=0,
        eval_batch_size=4,
        eval_images=0,
        save_every=100,
        log_every=10,
        threads=1,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return weak_folder.make(tmp_path_factory.mktemp("weak") / "own")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A network that full masks have trained."""
    workdir = tmp_path_factory.mktemp("run") / "full"
    assert train.train(make(root, steps=40), workdir) == 0
    return workdir


def written(folder):
    """Train ids by the id of the image, as any program reads a palette PNG."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        image = Image.open(path)
        assert image.mode == "P"
        palette = np.array(image.getpalette()).reshape(-1, 3)
        assert (palette[:3] == images.voc_palette(3)).all()
        found[path.stem] = np.asarray(image)
    return found


def write(config, output, method="boxsup", **more):
    choice = {k: more.pop(k) for k in boxsup.Settings._fields if k in more}
    options = program.Options(
        method=method,
        choice=boxsup.Settings(**choice),
        **{k: more.pop(k) for k in ("center",) if k in more},
    )
    return program.write(config, output, options=options, **more)


def test_each_method_writes_its_masks(root, tmp_path):
    config = make(root)
    settings = mean_field.Settings(**config.crf)
    source, _ = datasets.load(config.data, "train")
    seen = set()
    for method in program.METHODS:
        folder = tmp_path / method
        assert write(config, folder, method, **{"top": 1, "center": 0.1}) == 0
        labels = written(folder)
        assert set(labels) == {f"i{i}" for i in range(6)}
        for example in (source[i] for i in range(6)):
            image, found = example["image"], objects.find(example["label"])
            if method == "rectangles":
                expected = objects.rectangles(found, (16, 16))
            elif method == "boxsup":
                expected = boxsup.labels(
                    candidates.propose(image),
                    found,
                    log_probabilities=None,
                    rng=np.random.default_rng(0),
                    settings=boxsup.Settings(top=1),
                )
            else:
                each = [
                    in_boxes.grabcut(image, x.box)
                    if method == "grabcut"
                    else in_boxes.dense_crf(image, x.box, settings=settings, center=0.1)
                    for x in found
                ]
                expected = objects.paint(found, each, (16, 16))
            assert (labels[example["id"]] == expected).all(), method
        description = pseudo_labels.description(folder)
        truth = np.concatenate([masks()[name].ravel() for name in labels])
        guess = np.concatenate([labels[name].ravel() for name in labels])
        valid = truth != VOID
        accuracy = (truth == guess)[valid].mean()
        assert description["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-4)
        iou = [
            ((truth == k) & (guess == k)).sum()
            / ((truth == k) | ((guess == k) & valid)).sum()
            for k in range(3)
        ]
        assert description["miou"] == pytest.approx(np.mean(iou), abs=1e-4)
        seen.add(guess.tobytes())
    assert len(seen) >= 3  # flat colors: two methods may find the same


def test_what_the_choice_of_masks_depends_on(root, run, tmp_path):
    """The seed, the number of candidates, the network and its weight."""
    cases = {
        "plain": {},
        "seed": {"seed": 1},
        "network": {"workdir": run, "top": 1},
    }
    found = {}
    for name, more in cases.items():
        config = make(root)
        config.seed = more.pop("seed", 0)
        assert write(config, tmp_path / name, **more) == 0
        found[name] = np.stack(list(written(tmp_path / name).values()))
    assert (found["plain"] != found["seed"]).any()
    # A network that knows the masks finds them among the candidates.
    truth = np.stack([masks()[f"i{i}"] for i in range(6)])
    wrong = {k: ((v != truth) & (truth != VOID)).sum() for k, v in found.items()}
    assert wrong["network"] < wrong["plain"]
    description = pseudo_labels.description(tmp_path / "network")
    assert description["step"] == 40 and description["top"] == 1
    assert description["miou"] > 0.9


def test_a_command_continues_and_refuses_other_masks(root, run, tmp_path, capfd):
    config, folder = make(root), tmp_path / "labels"
    assert write(config, folder, "rectangles") == 0
    before = written(folder)
    # As if it had been killed: one mask is missing, and it is not complete.
    (folder / "i3.png").unlink()
    other = np.full((16, 16), 1, np.uint8)
    pseudo_labels.write(folder, "i0", other, images.voc_palette(3))
    pseudo_labels.describe(
        folder, pseudo_labels.description(folder) | {"complete": False}
    )
    assert write(config, folder, "rectangles") == 0
    after = written(folder)
    assert (after["i3"] == before["i3"]).all() and (after["i0"] == other).all()
    capfd.readouterr()
    assert write(config, folder, "rectangles") == 0
    assert "is complete: masks of 6 images" in capfd.readouterr().err
    message = error_of(write, config, folder, "grabcut")
    assert "holds masks with method='rectangles', this command has 'grabcut'" in message
    boxes = tmp_path / "boxsup"
    assert write(config, boxes) == 0
    for more, name in (({"top": 2}, "top"), ({"smallest_overlap": 0.9}, "smallest")):
        assert f"holds masks with {name}" in error_of(write, config, boxes, **more)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.txt").write_text("x")
    message = error_of(write, config, tmp_path / "other")
    assert "holds files but no pseudo_labels.json" in message


def test_bad_images_are_named_and_the_others_written(root, tmp_path, capfd):
    copy = shutil.copytree(root, tmp_path / "own")
    path = copy / "images" / "i2.png"
    data = bytearray(path.read_bytes())
    data[-24] ^= 255  # in the pixels: only decoding them shows it
    path.write_bytes(data)
    folder = tmp_path / "labels"
    assert write(make(copy), folder, "rectangles") == 1
    assert "i2.png" in capfd.readouterr().err
    assert set(written(folder)) == {"i0", "i1", "i3", "i4", "i5"}
    assert not pseudo_labels.description(folder)["complete"]


def test_another_network_or_data_set_is_refused(root, run, tmp_path):
    copy = shutil.copytree(root, tmp_path / "own")
    (copy / "classes.txt").write_text("background\ncat\ncow\n")
    with pytest.raises(UserError, match="cow"):
        write(make(copy), tmp_path / "labels", workdir=run)
    scenes = config_lib.make(data={"scenes_size": (32, 32)})
    assert "is 'sky'" in error_of(write, scenes, tmp_path / "labels")


def test_boxsup_runs_its_rounds_and_continues(root, tmp_path, capfd):
    config, workdir = make(root, steps=20), tmp_path / "boxsup"
    settings = boxsup.Settings(top=1)
    assert boxsup_program.run(config, workdir, rounds=2, settings=settings) == 0
    names = {path.name for path in workdir.iterdir()}
    assert names == {"labels_1", "labels_2", "round_1", "round_2"}
    for number in (1, 2):
        saved = json.loads((workdir / f"round_{number}" / "config.json").read_text())
        assert saved["data"]["supervision"] == "pseudo"
        assert saved["data"]["pseudo_labels"] == str(workdir / f"labels_{number}")
        start = str(workdir / "round_1") if number == 2 else ""
        assert saved["init_from"] == start
    assert "step" not in pseudo_labels.description(workdir / "labels_1")
    assert pseudo_labels.description(workdir / "labels_2")["step"] == 20
    capfd.readouterr()
    assert boxsup_program.run(config, workdir, rounds=3, settings=settings) == 0
    assert "round 3 of 3" in capfd.readouterr().err
    message = error_of(
        boxsup_program.run,
        make(root, supervision="box"),
        tmp_path / "other",
        rounds=1,
        settings=settings,
    )
    assert message.startswith("--config.data.supervision is 'box'; expected 'pseudo'")


@pytest.mark.parametrize(
    "data, loss, least",
    [
        ({"supervision": "image"}, {"em": "adapt", "em_background_share": 0.4}, 0.45),
        ({"supervision": "box"}, {}, 0.55),
        (
            {"supervision": "image", "strong_images": 2, "strong_share": 0.5},
            {"em": "fixed", "weak_weight": 0.5},
            0.9,
        ),
    ],
    ids=["image", "box", "semi"],
)
def test_weak_labels_teach_the_masks(root, tmp_path, data, loss, least):
    """Background everywhere would have a mIoU of 0.28."""
    assert train.train(make(root, steps=60, loss=loss, **data), tmp_path / "run") == 0
    rows = read_metrics(tmp_path / "run")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    (miou,) = (row["val_miou"] for row in rows if "val_miou" in row)
    assert miou > least


COMMON = "--config=CONFIG --output=OUT/new"
COMMANDS = {
    # name: exit code, program, arguments
    "made": (0, "pseudo_labels", "--config=CONFIG --output=OUT/a --method=boxsup"),
    "help": (0, "pseudo_labels", "--help"),
    "help of boxsup": (0, "boxsup", "--help"),
    "method": (2, "pseudo_labels", f"{COMMON} --method=grabcat"),
    "center": (2, "pseudo_labels", f"{COMMON} --center=0.5"),
    "top": (2, "pseudo_labels", f"{COMMON} --method=crf --top=2"),
    "workdir": (2, "pseudo_labels", f"{COMMON} --workdir=OUT"),
    "weight": (2, "pseudo_labels", f"{COMMON} --method=boxsup --weight=2"),
    "checkpoint": (2, "pseudo_labels", f"{COMMON} --checkpoint=best"),
    "no run": (2, "pseudo_labels", f"{COMMON} --method=boxsup --workdir=OUT/none"),
    "no workdir": (2, "boxsup", "--config=CONFIG"),
    "no rounds": (2, "boxsup", "--config=CONFIG --workdir=OUT/b --rounds=0"),
}


@pytest.fixture(scope="module")
def results(root, tmp_path_factory):
    """Code, stdout and stderr of every one of COMMANDS."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "config.py").write_text(
        "from segjax.config import make\ndef get_config():\n"
        f"    return make(data={{'name': 'folder', 'root': {str(root)!r}}})\n"
    )

    def call(program, arguments):
        arguments = arguments.replace("CONFIG", str(folder / "config.py"))
        arguments = arguments.replace("OUT", str(folder)).split()
        argv = ["-m", f"experiments.{program}", *arguments]
        return forked.run(argv, kill.environment(1))

    return {name: call(*command) for name, (_, *command) in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_code(results, name):
    code, _, err = results[name]
    assert code == COMMANDS[name][0], err
    assert "Traceback" not in err
    if code == 2:
        assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "name, message",
    [
        ("method", "did you mean 'grabcut'"),
        ("center", "--center has no effect with --method=rectangles"),
        ("top", "--top has no effect with --method=crf"),
        ("workdir", "--workdir has no effect with --method=rectangles"),
        ("weight", "--weight has no effect without --workdir"),
        ("checkpoint", "--checkpoint has no effect without --workdir"),
        ("no run", "none"),
        ("no workdir", "--workdir must be given"),
        ("no rounds", "--rounds"),
    ],
)
def test_bad_input_is_one_line(results, name, message):
    assert message in results[name][2].splitlines()[-1]
