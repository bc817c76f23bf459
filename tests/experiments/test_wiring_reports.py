"""Exit codes and flags of whole programs, and what the report of a sweep shows."""

import base64
import csv
import html.parser
import json
import re
import struct
from types import SimpleNamespace

import cv2
import forked
import jax
import kill
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments import plan, report, summarize, sweep
from experiments.shared import cli
from experiments.sweeps import report_page
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import checkpoint, config_fields, training
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.analysis.published import Number
from segjax.data import datasets

# Sweeps written by hand

STEPS = 4
WORST = ("<b>=2", "a&b=3")
PICTURE = np.arange(8 * 24 * 3, dtype=np.uint8).reshape(8, 24, 3)


def confusion(classes=9):
    rng = np.random.default_rng(1)
    return 50 * np.eye(classes, dtype=np.int64) + rng.integers(0, 9, (classes, classes))


def write_run(folder, steps=STEPS):
    """What a finished training leaves behind, and a picture of an earlier step."""
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)
    (folder / "pictures").mkdir()
    rows = [{"step": i, "images_per_second": 10.0 * i**2} for i in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    workdir_lib.write_dataset(folder, datasets.describe({"name": "scenes"}))
    values = {"step": steps, "confusion": confusion().tolist()}
    values |= {"images_per_second": 81.5, "compile_seconds": 7.25}
    values |= {"peak_bytes": 3e9, "peak_of": "<u>device"}
    (folder / "validation.json").write_text(json.dumps(values))
    versions = {"jax": "<i>1.2", "command": ["<s>secret"]}
    (folder / "versions.json").write_text(json.dumps(versions))
    for step, picture in ((steps, PICTURE), (1, PICTURE[::-1])):
        Image.fromarray(picture).save(folder / "pictures" / f"{step:08d}_0.png")


def write_sweep(folder, run):
    """Two rows of a seed: the first one as ``run`` leaves it, the second one failed."""
    folder.mkdir()
    base = config_lib.make(
        model={"padding": "same", "widths": (2, 4)},
        data={"scenes_size": (16, 16)},
        total_steps=STEPS,
    )
    changes = [{"optim.lr_mult": WORST}, {"optim.lr_mult": ("c=1",)}]
    rows = sweep_rows.make_rows(base, changes)
    sweep_runs.save(folder, sweep_runs.Sweep("configs/<b>x.py", rows, {}, [], 1))
    first, second = (folder / row.name / "seed0" for row in rows)
    if run == "finished":
        write_run(first)
        write_run(second)
    elif run == "failed":
        write_run(first)
        second.mkdir(parents=True)
        (second / "log.txt").write_text("error: <script>alert(1)</script>\n")
        (second / "exit.json").write_text("3")
    return folder


class Page(html.parser.HTMLParser):
    """Names of the tags, sources of the images and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            data = dict(attrs)["src"].partition("base64,")[2]
            data = np.frombuffer(base64.b64decode(data), np.uint8)
            self.images.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])

    def handle_data(self, data):
        self.text += data


def test_the_page_escapes_names_and_shows_the_pictures_of_the_last_step(
    tmp_path, capsys
):
    folder = write_sweep(tmp_path / "sweep", "failed")
    assert not report.report(folder, tmp_path, classes=[], pair=[], erf=False)
    page = Page((tmp_path / "report.html").read_text())
    known = {"html", "meta", "title", "style", "h1", "h2", "h3", "p", "div", "span"}
    known |= {"table", "tr", "th", "td", "ul", "li", "pre", "img", "figure"}
    assert page.tags <= known
    for text in ("configs/<b>x.py", "<b>=2", "a&b=3", "<u>device", "<i>1.2"):
        assert text in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "<s>secret" not in page.text
    _, picture = page.images
    np.testing.assert_array_equal(picture, PICTURE)
    info = datasets.describe({"name": "scenes"})
    for name, (r, g, b) in zip(info.classes, info.palette, strict=True):
        text = f'background:rgb({r},{g},{b})"></span>{name}</span>'
        assert text in (tmp_path / "report.html").read_text()
    plots = np.frombuffer((tmp_path / "report.png").read_bytes(), np.uint8)
    plots = cv2.imdecode(plots, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(page.images[0], plots)
    markdown = (tmp_path / "report.md").read_text()
    assert markdown.splitlines()[0] in capsys.readouterr().out


def test_cells_of_the_page_are_escaped():
    rows = [("<q>row", "runs", "mIoU %"), ("<b>x", "1 & <u>2", "-")]
    result = SimpleNamespace(finished=[], runs=[])
    parts = dict(problems=["<a>"], commands={"<em>": "<i>"}, results=[result])
    page = Page(report_page.page("facts", rows, **parts, scores=1, plots=b""))
    assert page.tags.isdisjoint({"q", "b", "u", "a", "em", "i"})
    for text in ("<q>row", "<b>x", "1 & <u>2", "<a>", "<em>", "<i>"):
        assert text in page.text


def test_numbers_of_the_report_are_those_of_the_files(tmp_path):
    folder = write_sweep(tmp_path / "sweep", "finished")
    assert report.report(folder, tmp_path, classes=["all"], pair=[], erf=False)
    first, _ = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    h = confusion()
    right = np.diag(h)
    iou = right / (h.sum(0) + h.sum(1) - right)
    assert float(first["mIoU_mean"]) == pytest.approx(iou.mean())
    for name, value in zip(
        datasets.describe({"name": "scenes"}).classes, iou, strict=True
    ):
        assert float(first[f"{name}_mean"]) == pytest.approx(value)
        assert first[f"{name}_std"] == ""  # of one value
    # The median of 10, 40, 90 and 160: the first steps include compilation.
    assert float(first["train_images_per_second"]) == 65
    assert float(first["eval_images_per_second"]) == 81.5
    assert float(first["compile_seconds"]) == 7.25
    assert float(first["peak_bytes"]) == 3e9
    assert (first["finished"], first["runs"], first["states"]) == ("1", "1", "finished")
    assert first["image_height"] == "16"


# Whole programs

RUN = "--workdir=RUN"
COMMANDS = {
    # name: exit code, command
    "report": (0, "report WHOLE --noerf --output=OUT/whole"),
    "report of failed": (1, "report FAILED --noerf"),
    "report of missing": (1, "report MISSING --noerf"),
    "report of both": (1, "report FAILED WHOLE --noerf --output=OUT/both"),
    "report of all": (1, "report SWEEPS --noerf --output=OUT/all --classes=wire,sky"),
    "report of none": (2, "report OUT/nowhere"),
    "report without": (2, "report"),
    "evaluate": (0, f"evaluate {RUN} --compilation_cache="),
    "evaluate latest": (
        *(0, f"evaluate {RUN} --compilation_cache= --checkpoint=latest --split=train"),
        "--output=OUT/latest --trimap",
    ),
    "evaluate bad": (2, f"evaluate {RUN} --checkpoint=5 --compilation_cache="),
    "predict": (0, f"predict {RUN} --compilation_cache= --output=OUT/predicted IMAGES"),
    "predict latest": (
        *(0, f"predict {RUN} --compilation_cache= --output=OUT/predicted7 IMAGES"),
        "--checkpoint=latest --outputs=ids --padding=0 --max_pixels=5000",
    ),
    "predict bad": (2, f"predict {RUN} --output=OUT/p --outputs=maps IMAGES"),
    "export": (
        *(0, f"export {RUN} --compilation_cache= --output=OUT/exported"),
        "--sizes=8x8 --platforms=cpu",
    ),
    "export bad": (2, f"export {RUN} --output=OUT/exported2 --sizes=8"),
    "import_weights": (0, "import_weights RUN --output=OUT/w.safetensors"),
    "import_weights bad": (2, "import_weights RUN --output=OUT/w.bin"),
    "summarize": (0, f"summarize {RUN} --size=16,24"),
    "summarize bad": (2, "summarize --size=16,24"),
    "plan": (0, "plan --config=CONFIG --topology=gpu:2 --json=OUT/plan.json"),
    "plan in another order": (
        *(0, "plan --config.batch_size=8 --json=OUT/plan8.json --topology=gpu:2"),
        "--config CONFIG",
    ),
    "plan help": (0, "plan --help"),
    "evaluate help": (0, f"evaluate {RUN} --help"),
    "plan bad": (2, "plan --config=CONFIG --topology=v9:2"),
    "sweep": (0, "sweep --config=CONFIG --workdir=OUT/s --engine=print --seeds=2"),
    "sweep bad": (2, "sweep --config=CONFIG --workdir=OUT/s --engine=print --seeds=0"),
}
CONFIG = """
from segjax.config import make
def get_config():
    return make(model={"padding": "same", "widths": (4,)}, batch_size=4,
                data={"scenes_size": (32, 32), "data_dir": "OUT/data"})
def sweep():
    yield {"optim.lr": 0.1}
    yield {"optim.lr": 0.2}
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of the commands; the best checkpoint of RUN is of step 3, not of 7."""
    root = tmp_path_factory.mktemp("programs")
    sweeps = root / "sweeps"
    sweeps.mkdir()
    found = {"SWEEPS": sweeps, "OUT": root / "out"}
    for name in ("finished", "failed", "missing"):
        found[name.upper()] = write_sweep(sweeps / name, name)
    found["WHOLE"] = found.pop("FINISHED")
    found["OUT"].mkdir()
    rng = np.random.default_rng(3)
    data = root / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for i, stem in enumerate(("one", "two", "three")):
        image = rng.integers(0, 255, (16, 24, 3), np.uint8)
        Image.fromarray(image).save(data / "images" / f"{stem}.png")
        mask = rng.integers(0, 3, (16, 24), np.uint8)
        mask[:, : 1 + i] = 255
        Image.fromarray(mask).save(data / "masks" / f"{stem}.png")
    (data / "val.txt").write_text("two")
    (data / "classes.txt").write_text("class0\nclass1\nclass2\n")
    fields = {"padding": "same", "widths": (2, 3)}
    options = {"data": {"name": "folder", "root": str(data)}, "eval_images": 0}
    run = root / "run"
    make_run(run, "unet", fields, **options)
    _, model, best = make_run(root / "other", "unet", fields, seed=9, **options)
    state = training.TrainState(
        jax.numpy.array(3), **best, opt_state={"m": jax.numpy.ones(1)}
    )
    manager = checkpoint.open_folder(run / "best", 1)
    checkpoint.save(manager, state, {})
    checkpoint.finish(manager)
    manager.close()
    found |= {"RUN": run, "IMAGES": data / "images", "CONFIG": root / "config.py"}
    found["CONFIG"].write_text(CONFIG.replace("OUT", str(found["OUT"])))
    return found | {"model": model, "best": best}


@pytest.fixture(scope="module")
def results(places):
    """Code, stdout and stderr of every one of COMMANDS."""
    names = "|".join(name for name in places if name.isupper())

    def argv(code, *parts):
        del code
        text = re.sub(names, lambda match: str(places[match[0]]), " ".join(parts))
        program, *rest = text.split()
        return ["-m", f"experiments.{program}", *rest]

    env = kill.environment(1)
    return {name: forked.run(argv(*COMMANDS[name]), env) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_code(results, name):
    code, out, err = results[name]
    assert code == COMMANDS[name][0], err
    assert "Traceback" not in err
    if code == 2:
        assert err.splitlines()[-1].startswith("error: ") and out == ""
    else:
        assert out


@pytest.mark.parametrize("program", ["plan", "evaluate"])
def test_help_explains_flags_and_fields(results, program):
    _, out, err = results[f"{program} help"]
    flag = "--topology" if program == "plan" else "--checkpoint"
    assert not err and flag in out and "--compilation_cache" in out
    for name, field in config_fields.flatten().items():
        start = out.index(f"\n  --config.{name}=")
        line = out[start + 1 :].partition("\n")[0]
        assert f"{field.meaning} ({field.range.expected})" in line


def test_reports_lie_where_they_are_asked_for(results, places):
    files = {"report.md", "report.csv", "report.html", "report.png"}
    out = places["OUT"]
    assert {path.name for path in (out / "whole").iterdir()} == files
    for folder in ("both/failed", "both/finished", "all/failed", "all/finished"):
        assert {path.name for path in (out / folder).iterdir()} == files
    # No scores to plot.
    assert {p.name for p in (out / "all/missing").iterdir()} == files - {"report.png"}
    (first, *_) = csv.DictReader(
        (out / "all/failed/report.csv").read_text().splitlines()
    )
    scores = [key for key in first if key.endswith("_mean")]
    assert scores == ["mIoU_mean", "wire_mean", "sky_mean"]
    assert not (places["WHOLE"] / "report.md").exists()
    assert files - {"report.png"} <= {p.name for p in places["FAILED"].iterdir()}
    assert "failed" in results["report of failed"][1]


def labels(places, stem):
    image = np.asarray(Image.open(places["IMAGES"] / f"{stem}.png"))
    logits, _ = places["model"].apply(places["best"], image[None], train=False)
    return image, np.asarray(logits)[0].argmax(-1)


def test_evaluate_takes_the_best_checkpoint_and_the_split_of_the_config(
    results, places
):
    """By hand: the only image of the validation split, and the printed table."""
    found = json.loads((places["RUN"] / "evaluation/validation.json").read_text())
    assert (found["step"], found["images"], found["split"]) == (3, 1, "validation")
    _, predicted = labels(places, "two")
    truth = np.asarray(Image.open(places["IMAGES"].parent / "masks" / "two.png"))
    h = np.array(
        [[((truth == i) & (predicted == j)).sum() for j in range(3)] for i in range(3)]
    )
    assert found["confusion"] == h.tolist()
    iou = np.diag(h) / (h.sum(0) + h.sum(1) - np.diag(h))
    rows = [line.split() for line in results["evaluate"][1].splitlines() if line]
    printed = {row[0]: row[1:] for row in rows}
    for i, name in enumerate(("class0", "class1", "class2")):
        accuracy, share = h[i, i] / h[i].sum(), h[i].sum() / h.sum()
        expected = [f"{100 * value:.2f}" for value in (iou[i], accuracy, share)]
        assert printed[name] == expected
    right = np.diag(h)
    expected = [
        right.sum() / h.sum(),
        (right / h.sum(1)).mean(),
        iou.mean(),
        (h.sum(1) / h.sum() * iou).sum(),
    ]
    assert printed["model"] == [f"{100 * value:.2f}" for value in expected]
    latest = json.loads((places["OUT"] / "latest/train.json").read_text())
    assert (latest["step"], latest["images"], latest["split"]) == (7, 2, "train")
    assert "trimap" in latest and "trimap" not in found
    assert (places["OUT"] / "latest/train_trimap.png").is_file()


def test_flags_of_predict_and_their_defaults(results, places):
    first = json.loads((places["OUT"] / "predicted/settings.json").read_text())
    other = json.loads((places["OUT"] / "predicted7/settings.json").read_text())
    assert [x["checkpoints"][0]["step"] for x in (first, other)] == [3, 7]
    assert (first["padding"], first["max_pixels"]) == (0.25, 2**22)
    assert (other["padding"], other["max_pixels"]) == (0, 5000)
    assert first["crf"] is None
    assert {p.name for p in (places["OUT"] / "predicted").iterdir()} == {
        *("labels", "overlays", "settings.json", "summary.json", "done_0.jsonl")
    }
    _, label = labels(places, "one")
    found = Image.open(places["OUT"] / "predicted/labels/one.png")
    assert (np.asarray(found) == label).mean() > 0.9  # a mirrored frame around it
    ids = Image.open(places["OUT"] / "predicted7/ids/one.png")
    assert (np.asarray(ids) != label).any()
    text = results["predict"][1]
    assert text.startswith("3 images segmented, 0 there already, 0 failed; ")


def test_export_and_import_weights_hold_the_best_checkpoint(results, places):
    kernel = places["best"]["params"]["head"]["kernel"]
    with np.load(places["OUT"] / "exported/weights.npz") as file:
        np.testing.assert_array_equal(file["0/params/head/kernel"], kernel)
    assert (places["OUT"] / "exported/program_8x8.jax").is_file()
    data = (places["OUT"] / "w.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    row = json.loads(data[8 : 8 + length])["params/head/kernel"]
    start, end = (8 + length + offset for offset in row["data_offsets"])
    found = np.frombuffer(data[start:end], np.float32).reshape(row["shape"])
    np.testing.assert_array_equal(found, kernel)


def test_printed_numbers_of_summarize_plan_and_sweep(results, places):
    out = results["summarize"][1]
    count = sum(leaf.size for leaf in jax.tree.leaves(places["best"]["params"]))
    assert re.search(rf"\nparameters +{count:,}\n", out)
    assert re.search(r"\nimage +16x24x3\n", out)
    assert "analytic" in results["plan"][1]
    written = json.loads((places["OUT"] / "plan.json").read_text())[""]
    assert "fits" not in written and written["batch"] == 4
    written = json.loads((places["OUT"] / "plan8.json").read_text())[""]
    assert written["batch"] == 8
    lines = results["sweep"][1].splitlines()
    assert len(lines) == 4
    for line, (lr, seed) in zip(lines, [(0.1, 0), (0.2, 0), (0.1, 1), (0.2, 1)]):
        assert f"--config.optim.lr={lr} " in line + " "
        assert f"--config.seed={seed} " in line + " "
        assert line.split()[:3] == ["python", "-m", "experiments.train"]
    assert not (places["OUT"] / "s").exists()


# Codes that need a fault


def test_plan_says_1_if_something_does_not_fit(monkeypatch, tmp_path, capsys):
    found = {"fits": True}
    values = {"_CONFIG": config_lib.make(), "_JSON": str(tmp_path / "p.json")}
    values |= {"_TOPOLOGY": "gpu:3", "_SLICES": 2, "_LARGEST": True, "_SWEEP": False}
    values |= {"_SCALING": ""}
    for name, value in values.items():
        flag = SimpleNamespace(value=value)
        monkeypatch.setattr(plan, name, flag, raising=False)
    asked = []

    def target(*given):
        asked.append(given)
        return SimpleNamespace(chips=6)

    def report(*_, largest, **__):
        asked.append(largest)
        return found

    monkeypatch.setattr(plan, "target", target)
    monkeypatch.setattr(plan, "network", lambda _, chips: asked.append(chips))
    monkeypatch.setattr(plan, "report", report)
    monkeypatch.setattr(plan.plan_text, "lines", lambda _: ["text"])
    assert plan.main([]) == 0
    assert asked == [("gpu:3", 2), 6, True]
    assert json.loads((tmp_path / "p.json").read_text()) == {"": {"fits": True}}
    found["fits"] = False
    assert plan.main([]) == 1
    del found["fits"]  # no compiler to ask
    assert plan.main([]) == 0


def test_summarize_says_1_if_a_number_differs_unexplained(monkeypatch, capsys):
    name = "unet"
    network = next(x for x in summarize.NETWORKS.values() if x.model == "unet")
    small = network._replace(
        fields={"padding": "same", "widths": (2, 4)}, image=(16, 16, 1)
    )
    monkeypatch.setattr(summarize, "NETWORKS", {name: small})
    for value, note, code in (("1", "", 1), ("1", "known", 0), ("2", "", 0)):
        # Convolutions before the first pooling: enc0_conv1 and enc0_conv2.
        number = Number("layers of enc0", value, "counted", note)
        monkeypatch.setattr(summarize, "NUMBERS", {name: [number]})
        assert summarize.summarize_all(None) == code
    assert "counted" in capsys.readouterr().out


def test_sweep_passes_its_flags_and_returns_the_code(monkeypatch, tmp_path):
    calls = []

    def run(*arguments, **options):
        calls.append((*arguments, options))
        return 1

    class Values(SimpleNamespace):
        def __getitem__(self, name):
            return SimpleNamespace(value="/cache", present=1)

    values = Values(
        config="CONFIG",
        workdir=str(tmp_path),
        engine="slurm",
        seeds=4,
        jobs=5,
        slurm=["time=600", "partition=gpu"],
    )
    monkeypatch.setattr(sweep, "flags", SimpleNamespace(FLAGS=values))
    monkeypatch.setattr(sweep.cli, "flag_value", lambda name: f"the {name}")
    monkeypatch.setattr(sweep.arguments, "given_fields", lambda: ["batch_size"])
    monkeypatch.setattr(sweep, "sweep", run)
    monkeypatch.setattr(sweep.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(sweep.absl.logging, "set_verbosity", lambda *_: None)
    assert sweep.main([]) == 1
    options = {"workdir": tmp_path, "engine": "slurm", "seeds": 4, "jobs": 5}
    options["slurm"] = {"time": 600, "partition": "gpu"}
    options["options"] = ["--compilation_cache=/cache"]
    options["given"] = ["batch_size"]
    assert calls == [("the config", "CONFIG", options)]


def test_ctrl_c_and_a_full_disk_have_codes_of_their_own(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli._guarded(interrupted, [])
    assert caught.value.code == cli.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"
    failures = []
    monkeypatch.setattr(cli, "_fail", failures.append)

    def full(argv):
        raise OSError(28, "No space left on device")

    cli._guarded(full, [])
    (error,) = failures
    assert str(error).startswith("No space left on device: free some space")

    def other(argv):
        raise OSError(5, "Input/output error")

    with pytest.raises(SystemExit) as caught:
        cli._guarded(other, [])
    assert caught.value.code == cli.LOST == 69
    assert capsys.readouterr().err.endswith("OSError: [Errno 5] Input/output error\n")


@pytest.mark.parametrize("kind", [ValueError, OSError, jax.errors.JaxRuntimeError])
def test_a_crash_of_one_process_does_not_wait_for_the_others(kind, monkeypatch):
    """Python's own exit would, and all of them end by SIGABRT after five minutes."""

    def crash(argv):
        raise kind("a bug")

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cli.os, "_exit", end)
    with pytest.raises(SystemExit) as caught:
        cli._guarded(crash, [])
    assert caught.value.code == 1
