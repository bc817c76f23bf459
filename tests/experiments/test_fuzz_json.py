"""Damaged JSON files of runs and sweeps: one line that names the file, never more.

A few hundred mutants here, thousands in ``make test-all``.
"""

import contextlib
import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import mutate_json

from experiments import report
from experiments.benchmarks import measuring, networks, operators
from experiments.sweeps import report_page, report_rows
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import config as config_lib
from segjax import published
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError

FEW, MANY = 60, 1600
STEPS = 4


def fuzz(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=10),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def write_sweep(folder: Path) -> dict[str, Path]:
    """A sweep of one finished run; its JSON files by what reads them."""
    base = config_lib.make(
        model={"padding": "same", "widths": (2, 4)},
        data={"scenes_size": (16, 16), "data_dir": str(folder / "data")},
        total_steps=STEPS,
    )
    rows = sweep_rows.make_rows(base, [{"optim.lr": 0.5}])
    sweep = sweep_runs.Sweep("configs/x.py", rows, {"batch_size": 4}, ["--a=b"], 1)
    sweep_runs.save(folder, sweep)
    (run,) = sweep_runs.runs_of(sweep, folder)
    workdir = run.folder
    (workdir / "checkpoints" / str(STEPS)).mkdir(parents=True)
    config_lib.save(rows[0].config, workdir / "config.json")
    info = datasets.describe({"name": "scenes"})
    workdir_lib.write_dataset(workdir, info)
    workdir_lib.write_versions(workdir, {"jax": "1.2", "command": ["x"]})
    workdir_lib.write_exit(workdir, 0)
    h = np.eye(len(info.classes), dtype=np.int64)
    values = {"step": STEPS, "confusion": h, "images_per_second": 8.5}
    values |= {"compile_seconds": 7.5, "peak_bytes": 2**30, "peak_of": "device"}
    workdir_lib.write_validation(workdir, values)
    rows = [{"step": i, "loss": 1.0, "images_per_second": 5.0} for i in range(1, 5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)
    field = {"step": STEPS, "side": 7.5}
    (workdir / "effective_field.json").write_text(json.dumps(field))
    return {
        path.name: path for path in (*folder.glob("*.json"), *workdir.glob("*.js*"))
    }


@pytest.fixture(scope="module")
def sweep_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        # The plots take half a second, and reading data is not what is tested.
        patch.setattr(report_page, "plot", lambda *_: b"")
        patch.setattr(report_rows.datasets, "load", refuse)
        found = write_sweep(folder)
        assert report.report(folder, folder, classes=["all"], pair=[], erf=True)
        found["numbers.json"] = folder / "numbers.json"
        yield folder, found


def refuse(*_):
    raise UserError("no data")


def damaged(path: Path, seed: int) -> bytes:
    """A mutant of a JSON file, or of one line of a JSONL file."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return mutate_json(data, seed)
    lines = data.splitlines()
    lines[seed % len(lines)] = mutate_json(lines[seed % len(lines)], seed)
    return b"\n".join(lines) + b"\n"


@contextlib.contextmanager
def replaced(path: Path, data: bytes):
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def readers(workdir: Path, folder: Path) -> list:
    """What programs call before they use the values."""
    config = config_lib.make(total_steps=STEPS)
    return [
        lambda: workdir_lib.read_dataset(workdir),
        lambda: workdir_lib.read_validation(workdir),
        lambda: workdir_lib.read_versions(workdir),
        lambda: workdir_lib.read_exit(workdir),
        lambda: [row["step"] + 1 for row in workdir_lib.read_metrics(workdir)],
        lambda: config_lib.check(config_lib.load(workdir / "config.json")),
        lambda: report_rows.read_run(workdir, 0, config),
        lambda: report.report(folder, folder, classes=["all"], pair=[], erf=True),
    ]


def check(sweep_files, name: str, seed: int) -> bool:
    """Whether everything could be read; otherwise one line has named the file."""
    folder, files = sweep_files
    workdir, good = files["dataset.json"].parent, True
    with replaced(files[name], damaged(files[name], seed)):
        for read in readers(workdir, folder):
            try:
                read()
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000
                good = False
                # A report may stop at what follows from the damage; a value of the
                # config is named as the flag that overrides it.
                named = name in str(error) or "config." in str(error)
                assert named or read.__code__.co_names[0] == "report", error
    return good


NAMES = (
    *("sweep.json", "numbers.json", "config.json", "dataset.json", "versions.json"),
    *("exit.json", "validation.json", "metrics.jsonl", "effective_field.json"),
)
names = st.sampled_from(NAMES)
seeds = st.integers(0, 2**32)


@fuzz(FEW)
@given(names, seeds)
def test_files_of_runs_and_sweeps(sweep_files, name, seed):
    check(sweep_files, name, seed)


@pytest.mark.slow
@fuzz(MANY)
@given(names, seeds)
def test_many_files_of_runs_and_sweeps(sweep_files, name, seed):
    check(sweep_files, name, seed + 2**33)


@pytest.mark.parametrize("program", [networks, operators])
@fuzz(FEW)
@given(seed=seeds)
def test_results_of_benchmarks(program, seed, tmp_path_factory):
    times = {"seconds": 0.5, "compile_seconds": 2.5}
    if program is networks:
        known = published.NETWORKS
        result = dict.fromkeys(("image", "parameters", "flops", "bytes"), 3)
        result |= {"forward": times, "step": times}
    else:
        known = operators.OPERATORS
        times = {"forward": 0.5, "gradients": 0.5, "compile": 1.5}
        result = {"difference": 0.0, "ours": times, "plain": times}
    where = {"device": "cpu", "repeats": 3}
    first, second, *_ = known
    path = tmp_path_factory.getbasetemp() / f"{program.__name__}.json"
    measuring.save(path, where, {first: result, second: result})

    def read():
        return measuring.load(path, where, schema=program.SCHEMA, names=known)

    assert len(program.rows(read())) == 3
    path.write_bytes(mutate_json(path.read_bytes(), seed))
    try:
        program.rows(read())
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_the_mutants_are_seen():
    """Without a schema most of them would be taken."""
    data = json.dumps({"step": 3, "confusion": [[1, 2], [3, 4]]}).encode()
    mutated = {mutate_json(data, seed) for seed in range(300)}
    assert len(mutated) > 200
    assert b"" in mutated and any(b"NaN" in x for x in mutated)
    assert any(b"confusionx" in x for x in mutated)
