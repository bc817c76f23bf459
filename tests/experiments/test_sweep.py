"""Sweeps: their rows and checks, the engines, and what a kill or a failure leaves."""

import gc
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kill
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from experiments import sweep
from experiments.sweeps import report_rows
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from experiments.sweeps import worker as sweep_worker
from segjax import config as config_lib
from segjax import models
from segjax.analysis import receptive_field
from segjax.errors import UserError
from segjax.models.network import abstract_variables

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.py"))


def shipped() -> list:
    return [
        pytest.param(
            file,
            arg,
            id=f"{file.stem}:{arg}",
            marks=(pytest.mark.slow,) * (arg != "quick"),
        )
        for file in FILES
        for arg in runpy.run_path(str(file))["VARIANTS"]
    ]


def rows_of(file: Path, arg: str) -> list[sweep_rows.Row]:
    module = runpy.run_path(str(file))
    arguments = (arg,) if module["sweep"].__code__.co_argcount else ()
    return sweep_rows.make_rows(module["get_config"](arg), module["sweep"](*arguments))


# Shipped sweeps


@pytest.fixture
def no_garbage_collection():
    """Tracing makes millions of objects that live; looking for dead ones is a third."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("file, arg", shipped())
def test_shipped_sweeps_build_and_their_last_row_trains(
    file, arg, no_garbage_collection
):
    rows = rows_of(file, arg)
    sweep_rows.check_row(rows[-1], data=False)
    built = [rows[-1].config.model]
    for row in rows[:-1]:
        config_lib.check(row.config)
        if row.config.model in built:
            continue
        built.append(row.config.model)
        classes, shape = sweep_rows.example(row.config)
        model = models.build(row.config, classes)
        assert abstract_variables(model, shape[-1])["params"]
    doc = runpy.run_path(str(file))["__doc__"]
    assert f"--config configs/sweeps/{file.name}:quick" in doc


def test_quick_sweeps_ask_whether_the_tents_see_the_balloon():
    """By their rows alone: what a row of the middle of the tents depends on."""
    seen = {}
    for file in ("pyramid_bins", "rates"):
        for row in rows_of(ROOT / "configs" / "sweeps" / f"{file}.py", "quick"):
            classes, shape = sweep_rows.example(row.config)
            model = models.build(row.config, classes)
            rows = receptive_field.rows_seen(model, shape)
            first = rows[round(0.83 * shape[0]), 0]
            seen[sweep_rows.title(row)] = first / shape[0]
    # The balloon fills the highest quarter at most.
    assert min(seen["bins=none"], seen["rates=1"], seen["rates=2"]) > 0.25
    assert max(seen["bins=1,2,3,6"], seen["bins=1"], seen["rates=2,4,6"]) < 0.02


# Rows


@pytest.fixture
def base():
    return config_lib.make(model_name="deeplab", model={"norm": "batch"})


def test_rows_are_named_by_what_differs_and_a_hash(base):
    rows = sweep_rows.make_rows(
        base,
        [
            {"model.rates": (1,), "batch_size": 8},
            {"model.rates": [6, 12], "batch_size": 8, "model.output_stride": 16},
            {"model.rates": (6, 12), "loss.resolution": "output_stride"},
        ],
    )
    titles = [sweep_rows.title(row) for row in rows]
    assert titles == [
        "rates=1,output_stride=8,resolution=full",
        "rates=6,12,output_stride=16,resolution=full",
        "rates=6,12,output_stride=8,resolution=output_stride",
    ]
    assert rows[1].config.model.rates == (6, 12)
    assert rows[1].config.model.output_stride == 16
    assert all(re.fullmatch(r"[0-9a-f]{8}", row.hash) for row in rows)
    tiled = sweep_rows.make_rows(base, [{}, {"tile": 256}])  # scored otherwise
    assert tiled[0].hash != tiled[1].hash
    again = sweep_rows.make_rows(base, [{"model.rates": (6, 12)}, {"workers": 3}])
    assert again[1].hash == sweep_rows.make_rows(base, [{}])[0].hash
    assert again[0].hash not in {row.hash for row in rows}


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"model.rate": (1,)},
            "row 2 .*--config.model: unknown value 'rate'; did you mean 'rates'",
        ),
        (
            {"modle.rates": (1,)},
            "row 2 .*--config: unknown value 'modle'; did you mean 'model'",
        ),
        ({"model.rates": 6}, r"row 2 .*config.model.rates is 6; expected tuple"),
        ({"model.rates.x": 6}, r"row 2 .*config.model.rates is {'x': 6}; expected t"),
        ({"model": 6}, "row 2 .*config.model is a group of fields"),
        ({"batch_size": 4.0}, "row 2 .*config.batch_size is 4.0; expected int"),
        ({"workers": 5}, "rows 1 and 2 of sweep.. give the same config"),
        ({"tile": 0}, "rows 1 and 2 of sweep.. give the same config"),
    ],
)
def test_bad_rows_are_refused_by_name(base, row, message):
    with pytest.raises(UserError, match=message):
        sweep_rows.make_rows(base, [{}, row])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"model.rates": ()}, r"row row-.*--config.model.rates \(DeepLab\)"),
        ({"optim.name": "adma"}, "row row-.*--config.optim.name: unknown value 'adma'"),
        ({"loss.class_weights": (1.0, 2.0)}, "row row-.*class_weights has 2 values"),
    ],
)
def test_rows_that_cannot_train_are_found_before_anything_runs(
    base, row, message, tmp_path
):
    base.data.data_dir = str(tmp_path)
    base.data.scenes_size, base.data.scenes_train = (32, 32), 2
    base.data.scenes_validation = 2
    (row,) = sweep_rows.make_rows(base, [row])
    with pytest.raises(UserError, match=message):
        sweep_rows.check_row(row, data=True)


def test_errors_of_our_own_are_no_bad_input(base, monkeypatch, tmp_path):
    """A TypeError is a fault of this program, whose traceback is needed."""

    def broken(*_, **__):
        raise TypeError("a fault")

    monkeypatch.setattr(sweep_rows.training, "make_step", broken)
    (row,) = sweep_rows.make_rows(base, [{}])
    with pytest.raises(TypeError, match="a fault"):
        sweep_rows.check_row(row, data=False)


def test_rows_with_earlier_names_of_fields(base):
    """The same rows, names and hashes as with the names of today."""
    earlier = {"loss.bootstrap": 64, "accumulate": 2, "loss.resolution": "cells"}
    today = {
        "loss.name": "hard_pixels",
        "loss.hard_pixels": 64,
        "grad_accum_steps": 2,
        "loss.resolution": "output_stride",
    }
    assert sweep_rows.make_rows(base, [{}, earlier]) == sweep_rows.make_rows(
        base, [{}, today]
    )


def test_epochs_of_rows(base, tmp_path):
    """They make other rows, and a number of steps in a row takes their place."""
    base.data.data_dir, base.data.scenes_size = str(tmp_path), (32, 32)
    base.data.scenes_train, base.data.scenes_validation = 16, 2
    rows = sweep_rows.make_rows(base, [{"total_epochs": 1.0}, {"total_epochs": 3.0}])
    assert [sweep_rows.check_row(r, data=True).config.total_steps for r in rows] == [
        *(2, 6)  # of batches of 8
    ]
    base.total_epochs = 3.0
    three, steps = sweep_rows.make_rows(base, [{}, {"total_steps": 5}])
    assert three.hash == rows[1].hash
    assert (steps.config.total_epochs, steps.config.total_steps) == (0.0, 5)
    base.total_steps = 7  # not used
    assert sweep_rows.make_rows(base, [{}])[0].hash == three.hash


def test_overrides_survive_the_command_line(base):
    values = {
        "model.rates": (6,),
        "model.widths": (8, 16, 16, 24, 24),
        "model.stage_sizes": (),
        "model.scales": (1.0, 0.5),
        "model.average_pool": True,
        "augment.rot90": False,
        "optim.lr_mult": ("fc8=10", "bias=2"),
        "optim.lr": 1e-5,
        "init_from": "a b",
    }
    argv = ["program", *(config_lib.flag(k, v) for k, v in values.items())]
    found = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", base, flag_values=found, sys_argv=argv)
    found(argv)
    flat = config_lib.flatten(found.config)
    assert {key: flat[key] for key in values} == values
    assert all(type(flat[key]) is type(values[key]) for key in values)


# Running, with a stand-in for training

CONFIG = """
from segjax.config import make
def get_config(arg=""):
    return make(model={model!r}, **{fields!r})
def sweep():
    for rate in {rates!r}:
        yield {{"optim.lr": rate}}
"""
TINY = {
    "data": {"scenes_size": (32, 32), "scenes_train": 8, "scenes_validation": 4},
    "batch_size": 4,
    "eval_batch_size": 4,
    "total_steps": 12,
    "eval_every": 6,
    "eval_images": 1,
    "save_every": 3,
    "log_every": 1,
    "threads": 1,
}
# Writes what a run of so many steps leaves behind, or fails half way.
STAND_IN = """
import json, sys, time
from pathlib import Path
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
rate, pause = map(float, sys.argv[3:])
print("started", flush=True)
with (folder / "metrics.jsonl").open("a") as file:
    for step in range(1, steps + 1):
        if rate > 1 and step > steps // 2:
            sys.exit("error: the loss became NaN")
        print(json.dumps({"step": step, "loss": 1.0, "images_per_second": 5.0}),
              file=file, flush=True)
        time.sleep(pause)
confusion = [[8, int(100 * rate)], [2, 9]]
(folder / "validation.json").write_text(
    json.dumps({"step": steps, "confusion": confusion}))
(folder / "checkpoints" / str(steps)).mkdir(parents=True)
"""


@pytest.fixture
def config_file(tmp_path):
    """A function that writes a config with a sweep over learning rates."""

    def write(rates, **fields):
        fields = TINY | fields
        fields["data"] = {"data_dir": str(tmp_path / "data"), **fields["data"]}
        model = {"padding": "same", "widths": (4,), "norm": "batch"}
        path = tmp_path / "config.py"
        path.write_text(CONFIG.format(model=model, fields=fields, rates=rates))
        return str(path)

    return write


def run_sweep(config: str, workdir: Path, jobs: int = 1, seeds: int = 1, **options):
    made = runpy.run_path(config)["get_config"]()
    options = {"engine": "local", "slurm": {}, "options": []} | options
    options |= {"workdir": workdir, "seeds": seeds, "jobs": jobs}
    return sweep.sweep(config, made, **options)


@pytest.fixture
def stand_in(monkeypatch):
    def command(description, run, python):
        rate = str(run.row.overrides["optim.lr"])
        return [python, "-c", STAND_IN, str(run.folder), "12", rate, "0.01"]

    monkeypatch.setattr(sweep_runs, "command", command)


def test_a_failing_row_is_reported_and_the_others_are_done(
    stand_in, config_file, tmp_path, capfd
):
    config, folder = config_file((0.1, 7.0, 0.2)), tmp_path / "sweep"
    assert run_sweep(config, folder, jobs=3) == 1
    said = capfd.readouterr()
    assert "2 of 3 runs finished" in said.out
    assert "failed at step 6 with exit code 1" in said.err
    assert "error: the loss became NaN" in said.err
    rows = sweep_runs.load(folder).rows
    kinds = [sweep_runs.state(folder / r.name / "seed0", 12) for r in rows]
    assert kinds == [
        sweep_runs.State("finished", 12),
        sweep_runs.State("failed", 6, 1),
        sweep_runs.State("finished", 12),
    ]
    # Again: finished runs are left alone, the failed one is tried once more.
    assert run_sweep(config, folder) == 1
    starts = [
        (folder / row.name / "seed0" / "log.txt").read_text().count("started")
        for row in rows
    ]
    assert starts == [1, 2, 1]
    other = config_file((0.1,)).replace("config.py", "./config.py")
    with pytest.raises(UserError, match="holds the sweep of .*use another --workdir"):
        run_sweep(other, folder)


def test_print_shows_the_commands_and_writes_nothing(config_file, tmp_path, capsys):
    config = config_file((0.1, 0.2))
    assert run_sweep(config, tmp_path / "s", seeds=2, engine="print") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not (tmp_path / "s").exists()
    assert re.fullmatch(
        rf"python -m experiments.train --config {config} "
        rf"--workdir {tmp_path}/s/lr=0.2-\w{{8}}/seed1 "
        "--config.optim.lr=0.2 --config.seed=1",
        lines[3],
    )


def test_printed_commands_may_start_from_what_only_the_workers_have(
    config_file, tmp_path, capsys
):
    path = config_file((0.1, 0.2))
    config = runpy.run_path(path)["get_config"]()
    config.init_from = "/workers/vgg16.safetensors"
    options = dict(workdir=tmp_path / "s", seeds=1, jobs=1, slurm={}, options=[])
    assert sweep.sweep(path, config, engine="print", **options) == 0
    assert "--config.init_from=/workers/vgg16.safetensors" in capsys.readouterr().out
    with pytest.raises(UserError, match="config.init_from is '/workers"):
        sweep.sweep(path, config, engine="local", **options)


def test_a_field_of_the_rows_cannot_be_overridden(config_file, tmp_path):
    path = config_file((0.1, 0.2))
    config = runpy.run_path(path)["get_config"]()
    config.optim.lr = 0.5
    options = dict(workdir=tmp_path / "s", seeds=1, jobs=1, slurm={}, options=[])
    with pytest.raises(UserError, match="--config.optim.lr: the sweep chooses"):
        sweep.sweep(path, config, engine="print", **options)


def test_rows_that_are_added_later_leave_the_others_finished(
    stand_in, config_file, tmp_path, capfd
):
    """They change the names of all rows, but not the hashes."""
    path, folder = Path(config_file((0.1, 0.2))), tmp_path / "sweep"
    assert run_sweep(str(path), folder) == 0
    more = '    yield {"optim.lr": 0.1, "optim.power": 0.5}\n'
    path.write_text(path.read_text() + more)
    assert run_sweep(str(path), folder) == 0
    assert "3 runs, 2 of them finished before" in capfd.readouterr().err
    found = sweep_runs.load(folder)
    runs = sweep_runs.runs_of(found, folder)
    names = "lr=0.1,power=0.9", "lr=0.2,power=0.9", "lr=0.1,power=0.5"
    assert tuple(sweep_rows.title(run.row) for run in runs) == names
    kinds = [sweep_runs.state(run.folder, 12).kind for run in runs]
    assert kinds == ["finished"] * 3
    assert len(list(folder.glob("lr=*"))) == 3


def test_rows_of_an_earlier_version_are_continued(config_file, tmp_path):
    """Whose hash was of configs with other fields: what has run stays where it is."""
    path, folder = config_file((0.1, 0.2)), tmp_path / "sweep"
    rows, overrides = sweep_rows.read(path, runpy.run_path(path)["get_config"]())
    old = folder / "lr=0.2-0123abcd"
    values = config_lib.json_like(rows[1].config)
    values["accumulate"] = values.pop("grad_accum_steps")
    for field in ("total_epochs", "precision", "float32_gradient_sums"):
        del values[field]
    (old / "seed0").mkdir(parents=True)
    (old / "seed0/config.json").write_text(json.dumps(values))
    (folder / "lr=0.3-aaaa").joinpath("seed0").mkdir(parents=True)
    (folder / "lr=0.3-aaaa/seed0/config.json").write_text("{")
    found = sweep_runs.runs_of(sweep_runs.Sweep(path, rows, overrides, [], 1), folder)
    assert [run.folder.parent for run in found] == [folder / rows[0].name, old]


@pytest.mark.parametrize(
    "body, message",
    [
        ("    yield {}[1]", "sweep.. raises KeyError: 1"),
        ("    yield 5", "sweep.. raises TypeError: 'int' object is not iterable"),
    ],
)
def test_errors_of_a_sweep_are_told_in_one_line(config_file, tmp_path, body, message):
    path = Path(config_file((0.1,)))
    path.write_text(path.read_text().partition("    for rate")[0] + body)
    with pytest.raises(UserError, match=f"--config {path}: {message}"):
        run_sweep(str(path), tmp_path / "s", engine="print")


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def said(log, text):
    return log.exists() and text in log.read_text()


def test_a_run_that_outlives_its_sweep_is_waited_for(tmp_path):
    """The lock belongs to the training, not to the job that had started it."""
    release, order = tmp_path / "release", tmp_path / "order"
    first = (
        "import pathlib, time\n"
        "print('ready', flush=True)\n"
        f"release = pathlib.Path({str(release)!r})\n"
        "for _ in range(6000):\n"
        "    if release.exists(): break\n"
        "    time.sleep(0.02)\n"
        f"open({str(order)!r}, 'a').write('first ')\n"
    )
    code = (
        "from experiments.sweeps import worker; "
        f"worker.work({[sys.executable, '-c', first]!r}, {str(tmp_path)!r}, {{}})"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: said(tmp_path / "log.txt", "ready"))
    job.kill()
    job.wait()
    assert sweep_runs.state(tmp_path, 12).kind == "running"
    # The second one has time to start, if it did not wait.
    timer = threading.Timer(1, release.touch)
    timer.start()
    second = [sys.executable, "-c", f"open({str(order)!r}, 'a').write('second')"]
    assert sweep_worker.work(second, str(tmp_path), {}) == 0
    timer.join()
    assert order.read_text() == "first second"
    assert sweep_runs.state(tmp_path, 12).kind == "interrupted"


def test_signals_of_slurm_save_and_requeue(tmp_path):
    """USR2 reaches all processes of a job; training must only get its SIGTERM."""
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(150)\n"
    )
    process = [sys.executable, "-c", script]

    def notify(*_):
        child = sweep_worker._processes[0]
        child.send_signal(signal.SIGUSR2)
        again = sweep_worker.work.checkpoint(process, str(tmp_path), {})
        assert again.args == (process, str(tmp_path), {})

    def ready():
        wait_until(lambda: said(tmp_path / "log.txt", "ready"))
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, notify)
    try:
        threading.Thread(target=ready).start()
        assert sweep_worker.work(process, str(tmp_path), {}) == 75
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sweep_runs.state(tmp_path, 12).kind == "interrupted"


def test_slurm_gets_one_array_of_what_is_left(
    stand_in, config_file, tmp_path, monkeypatch, capsys
):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (
        ("srun", ""),
        ("sbatch", f"cp $1 {tmp_path}/script; echo Submitted batch job 17"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    config, folder = config_file((0.1, 0.2, 0.3)), tmp_path / "sweep"
    options = {"time": 60, "partition": "gpu"}
    assert run_sweep(config, folder, jobs=2, engine="slurm", slurm=options) == 0
    script = (tmp_path / "script").read_text()
    for line in ("array=0-2%2", "partition=gpu", "signal=USR2@120", "time=60"):
        assert f"#SBATCH --{line}" in script
    # Whatever else is chosen, jobs get more than submitit's five minutes.
    again = tmp_path / "again"
    assert run_sweep(config, again, engine="slurm", slurm={"partition": "gpu"}) == 0
    assert "#SBATCH --time=1440\n" in (tmp_path / "script").read_text()
    out = capsys.readouterr().out
    assert re.search(rf"17_2  {folder}/lr=0.3-\w{{8}}/seed0", out)
    with pytest.raises(UserError, match="--engine=slurm: .*partitoin"):
        bad = {"partitoin": "gpu"}
        run_sweep(config, folder, engine="slurm", slurm=bad)


# Running, for true


def start_sweep(config: str, workdir: Path, cache: Path) -> subprocess.Popen:
    args = [sys.executable, "-m", "experiments.sweep", "--config", config]
    args += ["--workdir", str(workdir), "--seeds=1", f"--compilation_cache={cache}"]
    return kill.start(args, start_new_session=True, stdout=subprocess.DEVNULL)


def table(folder: Path) -> list[tuple]:
    """What a report shows of the scores."""
    rows = sweep_runs.load(folder).rows
    runs = [report_rows.read_run(folder / r.name / "seed0", 0, r.config) for r in rows]
    return [(run.state, np.asarray(run.confusion).tolist()) for run in runs]


@pytest.mark.slow
def test_a_sweep_killed_twice_gives_the_same_table(config_file, tmp_path):
    """Real training, hit in the first and in the second row, with all its processes."""
    config = config_file((0.01, 0.03))
    cache = tmp_path / "compiled"
    kill.finish(start_sweep(config, tmp_path / "whole", cache))
    killed = tmp_path / "killed"
    for steps, kinds in (
        (5, ["interrupted", "missing"]),
        (12 + 4, ["finished", "interrupted"]),
    ):
        process = start_sweep(config, killed, cache)

        def far_enough(process=process, steps=steps):
            logs = killed.glob("*/*/metrics.jsonl")
            logged = sum(path.read_text().count('"loss"') for path in logs)
            return logged >= steps or process.poll() is not None

        wait_until(far_enough, seconds=300)
        assert process.poll() is None, "it came to its end"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        # The training holds its lock until the kernel has done away with it.
        wait_until(lambda: all(state.kind != "running" for state, _ in table(killed)))
        assert [state.kind for state, _ in table(killed)] == kinds
    kill.finish(start_sweep(config, killed, cache))
    assert table(killed) == table(tmp_path / "whole")
    for row in sweep_runs.load(killed).rows:
        a, b = (folder / row.name / "seed0" for folder in (killed, tmp_path / "whole"))
        kill.assert_same_run(a, b, 12)
    assert json.loads((killed / "sweep.json").read_text())["seeds"] == 1
