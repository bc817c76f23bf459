"""Chains of training runs: their tables, what a stage starts from, and restarts."""

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

import forked
import kill
import numpy as np
import pytest

from experiments import chain
from experiments.shared import chains
from segjax import config as config_lib
from segjax.errors import UserError

ROOT = Path(__file__).parents[2]
WITH_TABLE = [
    path
    for path in sorted((ROOT / "configs").glob("*.py"))
    if chains.TABLE in runpy.run_path(str(path))
]
SHIPPED = [
    f"{path.relative_to(ROOT)}:{name}"
    for path in WITH_TABLE
    for name in runpy.run_path(str(path))[chains.TABLE]
]

CONFIG = """
from segjax.config import make, variant

VARIANTS = {"a": {"lr": 0.1}, "b": {"lr": 0.0}, "alone": {"lr": 0.2}}
STARTS_FROM = {"b": "a"}


def get_config(arg: str = ""):
    return make(
        model_name="unet",
        model={"padding": "same", "widths": (4, 8)},
        data={
            "scenes_size": (48, 48),
            "scenes_train": 10,
            "scenes_validation": 4,
            "data_dir": DATA_DIR,
        },
        augment={"crop": (32, 32)},
        optim=variant(arg, VARIANTS) | {"weight_decay": 0.0},
        batch_size=4,
        eval_batch_size=4,
        total_steps=2,
        eval_every=0,
        eval_images=0,
        threads=1,
    )
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    path = folder / "two.py"
    path.write_text(CONFIG.replace("DATA_DIR", repr(str(folder / "data"))))
    return path


def read(config_file, variant="b", workdir="w", **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return chains.read(f"{config_file}:{variant}", overrides, workdir=str(workdir))


# Tables


@pytest.mark.parametrize("config_file", SHIPPED)
def test_shipped_chains_are_stages_of_one_recipe(config_file):
    stages = chains.read(config_file, {"init_from": "w.safetensors"}, workdir="/r")
    assert len(stages) >= 2 and stages[-1].config_file == config_file
    first, *rest = stages
    assert first.config.init_from == "w.safetensors"
    for before, stage in zip(stages, rest, strict=False):
        assert stage.config.init_from == f"/r/{before.name}"
        assert stage.config.data.name == before.config.data.name
    # The docstring shows the command.
    doc = runpy.run_path(str(ROOT / config_file.partition(":")[0]))["__doc__"]
    assert "python -m experiments.chain" in doc


def test_a_chain_is_followed_to_its_beginning():
    table = {"fcn8s": "fcn16s", "fcn16s": "fcn32s"}
    assert chains.names("fcn8s", table) == ["fcn32s", "fcn16s", "fcn8s"]
    assert chains.names("fcn32s", table) == ["fcn32s"]
    with pytest.raises(UserError, match="circles: a <- b <- a$"):
        chains.names("a", {"a": "b", "b": "a"})


def test_what_is_wrong_with_a_chain_is_said_at_once(config_file, tmp_path):
    with pytest.raises(
        UserError, match=r"'a' starts from no other variant; chains end "
    ):
        read(config_file, "a")
    with pytest.raises(UserError, match="unknown value 'c'; "):
        read(config_file, "c")
    with pytest.raises(
        UserError, match="model_name: the networks of a chain are those"
    ):
        read(config_file, model_name="fcn")
    with pytest.raises(
        UserError, match="model.bins: the stage 'a' of the chain has no"
    ):
        read(config_file, model__bins=(1,))
    with pytest.raises(UserError, match="nothing.py: no such file"):
        read(tmp_path / "nothing.py")
    with pytest.raises(UserError, match="has no STARTS_FROM"):
        read(ROOT / "configs" / "quickstart.py", "")
    typo = tmp_path / "typo.py"
    typo.write_text(config_file.read_text().replace('{"b": "a"}', '{"b": "aa"}'))
    with pytest.raises(UserError, match="STARTS_FROM: unknown value 'aa'"):
        read(typo)


def test_fields_hold_for_all_stages_and_init_from_for_the_first(config_file):
    stages = read(config_file, workdir="/r", optim__lr=0.5, init_from="file", seed=3)
    assert [stage.config.optim.lr for stage in stages] == [0.5, 0.5]
    assert [stage.config.seed for stage in stages] == [3, 3]
    assert [stage.config.init_from for stage in stages] == ["file", "/r/a"]
    assert stages[0].notes == (
        "--config.optim.lr holds for all stages, which have a 0.1, b 0.0",
    )
    assert read(config_file)[0].notes == ()
    assert "init_from" not in read(config_file)[0].overrides
    line = chain.command(stages[1], Path("/r"), options=["--distributed=off"])
    assert line[:5] == ["python", "-m", "experiments.train", "--config"] + [
        f"{config_file}:b"
    ]
    assert line[5:8] == ["--workdir", "/r/b", "--distributed=off"]
    assert set(line[8:]) == {
        *("--config.optim.lr=0.5", "--config.init_from=/r/a", "--config.seed=3"),
    }


def test_a_number_of_steps_takes_the_place_of_epochs(config_file, tmp_path):
    path = tmp_path / "epochs.py"
    text = config_file.read_text()
    path.write_text(text.replace("total_steps=2", "total_epochs=5.0"))
    assert read(path)[1].config.total_epochs == 5
    short = read(path, total_steps=7)[1].config
    assert (short.total_epochs, short.total_steps) == (0, 7)


def test_a_stage_without_the_one_before_it_is_noted(config_file):
    def note(variant, **fields):
        config = read(config_file)[1].config.copy_and_resolve_references()
        config.update({"init_from": ""} | fields)
        return chains.note(f"{config_file}{variant}", config)

    assert "/two.py:b is a stage that starts from 'a'; without" in note(":b")
    assert not note(":b", init_from="w") and not note(":a") and not note("")
    quickstart = f"{ROOT}/configs/quickstart.py"
    assert not chains.note(quickstart, config_lib.make())


# Runs


@pytest.fixture
def commands(monkeypatch):
    """Stages run without the seconds that imports take; the commands that ran."""
    ran = []

    def run(command):
        ran.append(command)
        process = kill.fork(list(command))
        process.communicate(timeout=300)
        return process.returncode

    monkeypatch.setattr(chain, "_run", run)
    return ran


def stage_names(commands):
    return [Path(line[line.index("--workdir") + 1]).name for line in commands]


def test_a_stage_starts_from_the_one_before_and_finished_ones_are_left_alone(
    config_file, tmp_path, commands
):
    stages, options = read(config_file, workdir=tmp_path), ["--compilation_cache="]
    assert chain.chain(stages, tmp_path, options=options) == 0
    assert stage_names(commands) == ["a", "b"]
    # The second stage has a rate of 0: it ends with what it started from.
    first, second = (kill.final_arrays(tmp_path / name, 2) for name in "ab")
    params = [name for name in first if name.startswith("model") and "params" in name]
    assert len(params) > 4
    assert all(np.array_equal(first[name], second[name]) for name in params)

    commands.clear()
    assert chain.chain(stages, tmp_path, options=options) == 0
    assert not commands
    # Another recipe does not pass for this one, nor does a first stage that goes on.
    with pytest.raises(UserError, match=r"was trained with --config.optim.lr=0.1"):
        chain.chain(read(config_file, workdir=tmp_path, optim__lr=0.3), tmp_path)
    with pytest.raises(UserError, match="/b has started from a, which this command"):
        chain.chain(read(config_file, workdir=tmp_path, total_steps=4), tmp_path)
    assert not commands


def test_a_stage_that_ends_early_ends_the_chain(config_file, tmp_path, monkeypatch):
    codes, ran = iter([75, 3]), []
    monkeypatch.setattr(chain, "_run", lambda line: ran.append(line) or next(codes))
    stages = read(config_file, workdir=tmp_path)
    assert chain.chain(stages, tmp_path) == 75
    assert chain.chain(stages, tmp_path) == 3
    assert stage_names(ran) == ["a", "a"]


def test_bad_fields_of_a_later_stage_are_found_before_the_first_runs(
    config_file, tmp_path, monkeypatch
):
    bad = tmp_path / "bad.py"
    bad.write_text(
        config_file.read_text().replace('"b": {"lr": 0.0}', '"b": {"lr": -1}')
    )
    monkeypatch.setattr(chain, "_run", lambda line: pytest.fail("it ran"))
    with pytest.raises(
        UserError, match=r"stage b: --config.optim.lr is -1.0; expected"
    ):
        chain.chain(read(bad, workdir=tmp_path), tmp_path)


def test_signals_reach_the_stage_and_its_exit_code_comes_back():
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\n"
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    assert chain._run([sys.executable, "-c", code + "time.sleep(60)"]) == 75
    assert signal.getsignal(signal.SIGTERM) == before
    kills_itself = "import os\nos.kill(os.getpid(), 9)"
    assert chain._run([sys.executable, "-c", kills_itself]) == 137


def test_the_program_prints_its_commands(config_file, tmp_path):
    process = forked.Program(
        [
            *("-m", "experiments.chain", "--config", f"{config_file}:b", "--dry_run"),
            *("--workdir", str(tmp_path / "runs"), "--config.seed=4"),
            "--distributed=off",
        ],
        kill.environment(1),
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = (out or err).splitlines()
    shown = [line for line in lines if line.startswith("python -m experiments.train")]
    assert len(shown) == 2 and not (tmp_path / "runs").exists()
    assert f"--config.init_from={tmp_path}/runs/a" in shown[1]
    assert "--config.seed=4" in shown[1] and "--distributed=off" in shown[0]
    assert config_lib.normalize_flags(shown) == shown
