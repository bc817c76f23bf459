"""Networks side by side: which runs, their scores, all files, and what is refused."""

import base64
import csv
import html.parser
import io
import json
import os
import re
import shutil

import cv2
import forked
import kill
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments import compare, evaluate
from experiments.comparison import pictures
from experiments.comparison import results as results_lib
from experiments.comparison.methods import Method, Run
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import config as config_lib
from segjax import files, inference, metrics, models, viz
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.data.scenes import CLASSES
from segjax.errors import UserError
from segjax.inference.options import from_config

UNET = {"padding": "same", "widths": (4, 8), "norm": "batch"}
DEEPLAB = {
    "backbone": "resnet50",
    "stage_sizes": (1, 1, 0, 0),
    "width": 8,
    "rates": (1,),
    "norm": "batch",
}
SIZE = (32, 48)


def write(folder, name, fields, *, seed, **data):
    """A run with random weights, as if it had been trained on these scenes."""
    data = {"name": "scenes", "scenes_size": SIZE, "scenes_train": 4} | data
    data = {"scenes_validation": 6, "data_dir": str(folder.parent / "data")} | data
    make_run(folder, name, fields, classes=9, seed=seed, data=data)
    workdir_lib.write_dataset(folder, datasets.describe(data))
    values = json.loads((folder / "config.json").read_text()) | {"seed": seed}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def protocol(**changes):
    values = dict(split="", crf="", padding=0.1, max_pixels=10**6, overrides={})
    values |= dict(reuse=True, options=lambda c: inference.PredictOptions()) | changes
    return results_lib.Protocol(**values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def methods(folder):
    """Two seeds of a U-Net, and a DeepLab."""
    unets = [write(folder / f"unet{i}", "unet", UNET, seed=i) for i in range(2)]
    deeplab = write(folder / "deeplab", "deeplab", DEEPLAB, seed=2)
    seeds = tuple(Run(path, "latest") for path in unets)
    return [Method("U_Net", seeds), Method("Deep|Lab", (Run(deeplab, "latest"),))]


@pytest.fixture(scope="module")
def compared(methods, folder):
    """The results, and the folder of the files."""
    output = folder / "out"
    results = compare.compare(
        methods, protocol=protocol(), output=output, pictures=1, command="<the> & it"
    )
    return results, output


@pytest.fixture(scope="module")
def truth(methods):
    """By hand: confusion matrices [run][image] of the predictions, and the images."""
    found = {}
    for run in (run for method in methods for run in method.runs):
        config = config_lib.load(run.workdir / "config.json")
        source, _ = datasets.load(config.data, "validation")
        segmenter = inference.load(run.workdir, checkpoint="latest")
        examples = [source[i] for i in range(len(source))]
        labels = segmenter.predict([example["image"] for example in examples])
        counts = np.zeros((len(examples), 9, 9), np.int64)
        for i, (example, label) in enumerate(zip(examples, labels)):
            known = example["label"] != 255
            np.add.at(counts[i], (example["label"][known], label[known]), 1)
        found[run] = counts, labels, examples
    return found


def miou(confusion):
    """Mean over the classes that are there or predicted."""
    right = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - right
    return np.mean(right[union > 0] / union[union > 0])


# Scores


def test_scores_are_those_of_the_predictions(methods, compared, truth):
    results, _ = compared
    for method, result in zip(methods, results, strict=True):
        assert len(method.runs) == len(result.runs)
        for run, scored in zip(method.runs, result.runs):
            counts = truth[run][0]
            assert scored.run == run and scored.step == 7
            assert scored.scores["miou"] == pytest.approx(miou(counts.sum(0)))
            expected = [miou(c) for c in counts]
            np.testing.assert_allclose(scored.images, expected, rtol=1e-12)
            iou = metrics.scores(counts.sum(0))["iou"]
            np.testing.assert_allclose(scored.classes, iou)
    assert [result.costs.network for result in results] == ["unet", "deeplab"]
    config = config_lib.load(methods[0].runs[0].workdir / "config.json")
    assert results[0].rate > 0
    # Counted by hand: 3x3 layers and their norms, the 2x2 up-convolution, the scores.
    convs = [(3, 4), (4, 4), (4, 8), (8, 8), (8, 4), (4, 4)]
    count = sum(9 * i * o + 2 * o for i, o in convs) + 4 * 8 * 4 + 4 + 4 * 9 + 9
    built = models.build(config, 9)
    assert results[0].costs.parameters in (count, count + sum(o for _, o in convs))
    assert type(built).__name__ == "UNet"
    h, w = SIZE
    macs = h * w * (9 * (3 * 4 + 4 * 4 + 8 * 4 + 4 * 4) + 4 * 9)
    macs += (h // 2) * (w // 2) * (9 * (4 * 8 + 8 * 8) + 4 * 8 * 4)
    assert results[0].costs.flops == 2 * macs


def test_the_csv_has_means_and_deviations(methods, compared, truth):
    text = (compared[1] / "compare.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["U_Net", "Deep|Lab"]
    assert {row["kind"] for row in rows} == {"measured"}
    seeds = [miou(truth[run][0].sum(0)) for run in methods[0].runs]
    assert float(rows[0]["miou_mean"]) == pytest.approx(np.mean(seeds))
    deviation = abs(seeds[0] - seeds[1]) / np.sqrt(2)  # of two values, n - 1
    assert float(rows[0]["miou_std"]) == pytest.approx(deviation)
    assert rows[1]["miou_std"] == "" and rows[1]["runs"] == "1"
    for index, name in enumerate(CLASSES):
        ious = [
            metrics.scores(truth[run][0].sum(0))["iou"][index]
            for run in methods[0].runs
        ]
        assert float(rows[0][f"iou_{name}_mean"]) == pytest.approx(np.mean(ious))
    assert rows[0]["image_height"] == "32" and rows[0]["image_width"] == "48"
    assert rows[0]["workdirs"].split() == [str(r.workdir) for r in methods[0].runs]


def test_the_json_has_every_run_and_the_pairs(methods, compared, truth):
    values = json.loads((compared[1] / "compare.json").read_text())
    assert values["images"] == 6 and values["split"] == "validation"
    assert [len(method["runs"]) for method in values["methods"]] == [2, 1]
    by_image = [
        np.mean([[miou(c) for c in truth[run][0]] for run in m.runs], axis=0)
        for m in methods
    ]
    (pair,) = values["pairs"]
    differences = by_image[0] - by_image[1]
    assert (pair["first"], pair["second"]) == ("U_Net", "Deep|Lab")
    assert pair["mean"] == pytest.approx(differences.mean())
    assert pair["better"] == (differences > 0).sum()
    assert pair["worse"] == (differences < 0).sum()
    run = values["methods"][1]["runs"][0]
    assert run["image_miou"] == pytest.approx(by_image[1].tolist())
    assert values["command"] == "<the> & it" and values["left_out"] == []


def test_text_and_markdown_have_every_method(compared):
    text = (compared[1] / "compare.txt").read_text()
    first, *lines = text.splitlines()
    assert first.startswith("IoU in percent on 6 images of scenes/validation (32x48)")
    assert "sample standard deviation over the runs" in first
    assert len([line for line in lines if line.startswith("U_Net ")]) == 3
    assert re.search(r"^U_Net .* \d+\.\d ± \d+\.\d$", text, re.M)
    assert "1 x cpu" not in text and "CPU cores" in text
    markdown = (compared[1] / "compare.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert widths[:4] == [12] * 4  # method, nine classes, mean
    assert sum("Deep\\|Lab" in row for row in rows) == 3


def test_the_latex_table_is_complete(compared):
    text = (compared[1] / "compare.tex").read_text()
    assert text.startswith("% IoU in percent") and text.count("{tabular}") == 2
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [11] * 3
    assert text.count(r"\rotatebox{90}") == 9 and r"tent\_red" in text
    assert r"U\_Net & " in text and r"$\pm$" in text and r"\textbf{" in text
    assert text.count("{") == text.count("}")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1


class Page(html.parser.HTMLParser):
    """Tags, decoded images and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "html"):
            self.open.append(tag)
        if tag == "img":
            code = dict(attrs)["src"].partition("base64,")[2]
            data = np.frombuffer(base64.b64decode(code), np.uint8)
            self.images.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])

    def handle_endtag(self, tag):
        assert tag == "html" or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_where_the_methods_differ_most(methods, compared, truth):
    page = Page((compared[1] / "compare.html").read_text())
    assert not page.open and page.tags.count("table") == 3
    assert "<the> & it" in page.text
    by_image = [
        np.mean([[miou(c) for c in truth[run][0]] for run in m.runs], axis=0)
        for m in methods
    ]
    lead = by_image[0] - by_image[1]
    shown = [int(np.argmax(x)) for x in (lead, -lead) if x.max() > 0]
    figure, *pictures = page.images
    assert figure.std() > 5 and len(pictures) == 4 * len(shown)
    palette = datasets.describe({"name": "scenes"}).palette
    for i, image in enumerate(shown):
        picture, label, unet, deeplab = pictures[4 * i : 4 * i + 4]
        example = truth[methods[0].runs[0]][2][image]
        np.testing.assert_array_equal(picture, example["image"])
        known = example["label"] != 255
        colors = viz.colorize(example["label"], palette)
        np.testing.assert_array_equal(label[known], colors[known])
        assert (label[~known] == 255).all()
        for shown_labels, method in ((unet, methods[0]), (deeplab, methods[1])):
            expected = truth[method.runs[0]][1][image]
            np.testing.assert_array_equal(shown_labels, viz.colorize(expected, palette))
        assert f"{example['id']}: " in page.text
    # The first of them, in the last column of the picture: cells of 240 pixels.
    sheet = cv2.imread(str(compared[1] / "compare.png"))[..., ::-1]
    label = truth[methods[1].runs[0]][1][shown[0]]
    zoom = 240 // max(label.shape)
    expected = viz.colorize(label, palette).repeat(zoom, 0).repeat(zoom, 1)
    top = viz.LINE + viz.GAP + (240 - expected.shape[0]) // 2
    left = 3 * (240 + viz.GAP) + (240 - expected.shape[1]) // 2
    got = sheet[top : top + expected.shape[0], left : left + expected.shape[1]]
    np.testing.assert_array_equal(got, expected)


def test_a_page_without_photos_holds_predictions_alone(methods, compared, truth):
    results, _ = compared
    configs = results_lib.configs(methods, {})
    data = results_lib.open_data(configs, "")
    image = next(iter(results[0].labels))
    shown = pictures.row(image, results, data=data, photos=True)
    assert pictures.titles(results, True) == ["image", "truth", "U_Net", "Deep|Lab"]
    without = pictures.row(image, results, data=data, photos=False)
    for got, expected in zip(without, shown[2:], strict=True):
        np.testing.assert_array_equal(got, expected)
    assert pictures.titles(results, False) == ["U_Net", "Deep|Lab"]
    sheet = pictures.sheet([image], results, data=data, photos=False)
    assert sheet.shape[1] < 3 * 240


# Results that are there already


def test_the_same_evaluation_is_not_repeated(methods, compared, folder, monkeypatch):
    results, output = compared
    calls = []

    def again(*arguments, **options):
        calls.append(options)
        raise UserError("evaluated")

    monkeypatch.setattr(evaluate, "evaluate", again)
    run = methods[1].runs[0]
    place = output / "evaluations" / "1_0"

    def score(place, config=None, **changes):
        saved = results_lib.configs([Method("x", (run,))], {})
        data = results_lib.open_data(saved, "")
        return results_lib.score(
            *(run, config or saved[run]),
            data=data,
            protocol=protocol(**changes),
            folder=place,
        )

    np.testing.assert_array_equal(score(place).images, results[1].runs[0].images)
    # Those that experiments.evaluate has left in the workdir serve as well.
    own = run.workdir / "evaluation"
    own.mkdir()
    for path in place.glob("validation*"):
        (own / path.name).write_bytes(path.read_bytes())
    assert score(folder / "none").scores == results[1].runs[0].scores
    # Of an earlier version, whose configs had fewer fields.
    values = json.loads((own / "validation.json").read_text())
    del values["config"]["precision"]
    files.write_json(own / "validation.json", values)
    assert score(folder / "none").scores == results[1].runs[0].scores
    assert calls == []
    flipped = inference.PredictOptions(flip=True)
    config = config_lib.load(run.workdir / "config.json")
    config.precision = "highest"
    for changes in (
        {"reuse": False},
        {"options": lambda c: flipped},
        {"crf": "deeplab_v1"},
        {"padding": 0.0},
        {"max_pixels": 100},
        {"config": config},
    ):
        with pytest.raises(UserError, match="evaluated"):
            score(place, **changes)
    assert calls[1]["options"] == flipped and calls[2]["crf"] == "deeplab_v1"
    assert calls[3]["padding"] == 0.0 and calls[4]["max_pixels"] == 100
    # Numbers of the images that are cut off or damaged.
    (own / "validation_images.csv").unlink()
    rows = place / "validation_images.csv"
    text = rows.read_text()
    head, last = text.strip().rsplit(",", 1)
    for damaged in (head.rsplit(",", 1)[0], text.replace(last, "x")):
        rows.write_text(damaged)
        with pytest.raises(UserError, match="evaluated"):
            score(place)
    rows.write_text(text)
    # Results that are damaged.
    good = (place / "validation.json").read_text()
    for name, value in (("stages", 3), ("stages", {}), ("crf", 3), ("classes", {})):
        files.write_json(place / "validation.json", json.loads(good) | {name: value})
        with pytest.raises(UserError, match="evaluated"):
            score(place)
    files.write_text(place / "validation.json", good)
    # A checkpoint that is newer than the results.
    for path in (own / "validation.json", place / "validation.json"):
        os.utime(path, (1, 1))
    with pytest.raises(UserError, match="evaluated"):
        score(place)
    for path in own.iterdir():
        path.unlink()
    own.rmdir()


# What does not compare


def test_runs_of_other_classes_or_images_are_refused(methods, folder):
    other = write(folder / "other", "unet", UNET, seed=0, scenes_seed=5)
    pair = [methods[0], Method("other", (Run(other, "latest"),))]
    saved = results_lib.configs(pair, {})
    message = "other: the split 'validation' has 6 images .* expected the same images"
    with pytest.raises(UserError, match=message):
        results_lib.open_data(saved, "")
    info = datasets.describe({"name": "scenes"})
    swapped = info._replace(classes=info.classes[::-1])
    workdir_lib.write_dataset(other, swapped)
    message = "other was trained for the classes tent_blue, .* runs of the same classes"
    with pytest.raises(UserError, match=message):
        results_lib.open_data(saved, "")


def test_runs_of_one_method_differ_in_their_seed_alone(methods):
    message = "mix: .*deeplab was trained with --config.model_name='deeplab', .*'unet'"
    with pytest.raises(UserError, match=message):
        mixed = methods[0].runs[:1] + methods[1].runs
        results_lib.configs([Method("mix", mixed)], {})
    # The folder of the data is no field that matters, but what is in it matters.
    runs = methods[0].runs
    for run, name in zip(runs, ("aa", "bb")):
        split = workdir_lib.Split(7, name * 12)
        workdir_lib.write_splits(run.workdir, {"train": split})
    message = "nets: .*unet1 was trained on 7 images .*bbbb.*, .*unet0 on 7 .aaaa"
    with pytest.raises(UserError, match=message):
        results_lib.configs([Method("nets", runs)], {})
    for run in runs:
        (run.workdir / "splits.json").unlink()


def test_a_run_that_was_started_from_counts_by_its_recipe(methods, folder):
    (first, *_), (other, *_) = methods[0].runs, methods[1].runs
    names = ("start1", "start2", "end1", "end2", "end3")
    start1, start2, end1, end2, end3 = (folder / name for name in names)

    def copy(target, source, **changes):
        target.mkdir(exist_ok=True)
        values = json.loads((source / "config.json").read_text()) | changes
        (target / "config.json").write_text(json.dumps(values))

    for start, seed in ((start1, 1), (start2, 2)):
        copy(start, other.workdir, seed=seed)
    copy(end1, first.workdir, init_from=str(start1), seed=1)
    copy(end2, first.workdir, init_from=str(start2), seed=2)
    copy(end3, first.workdir, init_from=str(start2), seed=3, batch_size=3)
    runs = [Run(end, "latest") for end in (end1, end2, end3)]
    assert len(results_lib.configs([Method("chain", runs[:2])], {})) == 2
    with pytest.raises(UserError, match="end3 was trained with --config.batch_size=3"):
        results_lib.configs([Method("chain", runs)], {})
    copy(start2, first.workdir)  # another network
    with pytest.raises(UserError, match="end2 was .*init_from='.*start2', .*start1'"):
        results_lib.configs([Method("chain", runs[:2])], {})


def test_overrides_hold_for_all_runs(methods):
    found = results_lib.configs(methods, {"threads": 3, "data.scenes_seed": 9})
    assert {(c.threads, c.data.scenes_seed) for c in found.values()} == {(3, 9)}
    with pytest.raises(UserError, match="eval_batch_size"):
        results_lib.configs(methods, {"eval_batch_size": 0})
    # What is said of the options is said of all runs, with the overrides.
    found = results_lib.configs(methods, {"tile": 33})
    told = protocol(options=from_config, crf="deeplab_v1")
    assert compare.options_text(found.values(), told) == "tile=33, crf=deeplab_v1"
    found[methods[1].runs[0]].tile = 0
    told = protocol(options=from_config)
    assert compare.options_text(found.values(), told) == (
        "tile=33 or predicted in one piece"
    )


def test_pictures_are_written_as_png(compared):
    """What evaluations leave in the folder of the results can be opened."""
    for path in (compared[1] / "evaluations").glob("*/*.png"):
        with Image.open(path) as image:
            image.load()


# The program


@pytest.fixture(scope="module")
def programs(methods, compared, folder):
    """Code, stdout and stderr of command lines."""
    base = config_lib.load(methods[0].runs[0].workdir / "config.json")
    sweep = folder / "sweep"
    sweep.mkdir()
    rows = sweep_rows.make_rows(base, [{"total_steps": 7}, {"total_steps": 9}])
    sweep_runs.save(sweep, sweep_runs.Sweep("c.py", rows, {}, [], 1))
    finished = sweep / rows[0].name / f"seed{base.seed}"
    shutil.copytree(methods[0].runs[0].workdir, finished)
    config_lib.save(rows[0].config, finished / "config.json")
    files.write_json(finished / "validation.json", {"step": 7, "confusion": [[1]]})
    runs = [str(method.runs[0].workdir) for method in methods]
    commands = {
        "help": ["--help"],
        "two": [*runs, "--pictures=0", "--split=validation"],
        "sweep": [str(sweep), "--flip"],
        "nothing": [],
        "unknown run": [runs[0], "nothing"],
        "field of a model": [*runs, "--config.model_name=fcn"],
        "ensemble": [*runs, f"--ensemble={runs[0]}"],
        "config file": [*runs, "--config=configs/quickstart.py"],
        "split": [*runs, "--split=tset"],
        "data": [*runs, "--config.data.scenes_seed=3", "--config.data.name=folder"],
    }
    found = {}
    for name, words in commands.items():
        output = folder / "programs" / name.replace(" ", "_")
        argv = ["-m", "experiments.compare", *words, f"--output={output}"]
        found[name] = (*forked.run(argv, kill.environment(1)), output)
    return found


NAMES = {"compare.txt", "compare.md", "compare.csv", "compare.tex", "compare.html"}


def test_programs_compare_and_say_what_is_left_out(programs, compared):
    code, out, err, output = programs["two"]
    assert code == 0, err
    files_there = {path.name for path in output.iterdir() if path.is_file()}
    assert files_there == NAMES | {
        "compare.json"
    }  # no picture: no images are asked for
    assert (output / "compare.txt").read_text() in out
    assert "unet0 " in out and "deeplab " in out and f"written to {output}" in out
    assert (output / "compare.html").read_text().count("<img") == 1  # the figure alone
    values = json.loads((output / "compare.json").read_text())
    ours = json.loads((compared[1] / "compare.json").read_text())
    first, second = values["methods"][0]["runs"][0], ours["methods"][0]["runs"][0]
    assert first["scores"] == pytest.approx(second["scores"])
    code, out, err, output = programs["sweep"]
    assert code == 1 and "left out: total_steps=9, seed 0: missing" in out, err
    assert "flip=True" in out and "total_steps=7 " in out
    assert json.loads((output / "compare.json").read_text())["left_out"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "give the runs to compare"),
        ("unknown run", "nothing is no run"),
        ("field of a model", "--config.model_name: networks are what they were"),
        ("ensemble", "--ensemble: expected runs that are compared"),
        ("config file", "--config: the configs are read from the workdirs"),
        ("split", "tset"),
        ("data", "data"),
    ],
)
def test_bad_input_is_one_line(programs, name, message):
    code, out, err, _ = programs[name]
    assert code == 2 and out == "", err
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and message in last and "Traceback" not in err


def test_help_explains_flags(programs):
    code, out, *_ = programs["help"]
    assert code == 0
    for flag in ("--reuse", "--pictures", "--split", "--crf", "--max_pixels", "--flip"):
        assert f"{flag}:" in out or f"--[no]{flag[2:]}" in out
