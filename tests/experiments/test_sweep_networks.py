"""Sweeps over networks and whole config files: rows, names and commands."""

import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from experiments.shared import arguments
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import config as config_lib
from segjax import models
from segjax.errors import UserError

# ml_collections loads config files in a way that Python 3.12 will not have.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

BASE = """
from segjax.config import make
def get_config(arg=""):
    return make(model={"padding": "same", "widths": (4, 8)}, batch_size=4, seed=2,
                data={"scenes_size": (32, 32)}, total_steps=6)
def sweep():
    yield from ROWS
"""
OTHER = """
from segjax.config import make
def get_config(arg=""):
    return make(model_name="deeplab", model={"rates": (int(arg or 6),), "width": 8},
                batch_size=16, total_epochs=2.0, data={"scenes_size": (32, 32)})
"""


@pytest.fixture
def files(tmp_path):
    """A function that writes a config with these rows, and the file of another one."""
    (tmp_path / "other.py").write_text(OTHER)

    def write(*rows):
        path = tmp_path / "base.py"
        path.write_text(BASE.replace("ROWS", repr(list(rows))))
        return str(path), f"{tmp_path}/other.py"

    return write


@pytest.fixture
def parse(monkeypatch):
    """The config that a program gets from a command line, and what overrides it."""

    def parsed(*command):
        values = flags.FlagValues()
        argv = config_lib.normalize_flags(arguments.config_first(["program", *command]))
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(flags, "FLAGS", values)
        config_flags.DEFINE_config_file("config", None, flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        arguments.parse(argv, positional=False, common_flags="program")
        return values.config, arguments.given_fields()

    return parsed


def read(parse, path, *words):
    config, given = parse("--config", path, *words)
    return sweep_rows.read(path, config, given)


# The command line


def test_another_network_of_the_same_file(files, parse):
    path, _ = files({})
    config, given = parse(
        "--config.model.skips=8", "--config", path, "--config.model_name", "fcn"
    )
    assert config.model_name == "fcn" and config.batch_size == 4
    assert config_lib.json_like(config.model) == models.model_fields("fcn") | {
        "skips": 8
    }
    assert set(given) == {"model_name", "model.skips"}
    # Its own network keeps the fields of the file.
    config, _ = parse("--config", path, "--config.model_name=unet")
    assert config.model.widths == (4, 8)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config.model_name=fcm"], "--config.model_name: unknown value 'fcm'; did"),
        (
            ["--config.model_name=fcn", "--config.model.widhs=1,2"],
            "unknown flag --config.model.widhs",
        ),
        (
            ["--config.model_name=fcn", "--config.model.layout=paper"],
            "unknown flag --config.model.layout",
        ),
    ],
)
def test_a_field_of_no_or_another_network(files, parse, words, message):
    with pytest.raises(UserError, match=message):
        parse("--config", files({})[0], *words)


# Rows


def test_rows_of_other_networks_have_their_defaults(files, parse):
    path, _ = files(
        {},
        {"model_name": "fcn", "model.skips": 8},
        {"model_name": "fcn", "model.skips": 16, "optim.lr": 0.5},
        {"model_name": "pspnet"},
    )
    rows, overrides = read(parse, path)
    assert overrides == {}
    assert [re.sub("-[0-9a-f]{8}$", "", row.name) for row in rows] == [
        "unet,lr=0.01",
        "fcn,skips=8,lr=0.01",
        "fcn,skips=16,lr=0.5",
        "pspnet,lr=0.01",
    ]
    assert config_lib.json_like(rows[3].config.model) == models.model_fields("pspnet")
    assert rows[1].config.model.skips == 8 and rows[0].config.model.widths == (4, 8)
    assert {row.config.batch_size for row in rows} == {4}
    assert len({row.hash for row in rows}) == 4
    assert [row.hash for row in rows] == [sweep_rows.hash_of(r.config) for r in rows]


def test_a_row_may_be_another_config_file(files, parse):
    _, other = files()
    path, _ = files(
        {},
        {"config": other},
        {"config": f"{other}:12", "batch_size": 2, "total_steps": 3},
    )
    rows, _ = read(parse, path, "--config.augment.flip=0.25")
    assert [sweep_rows.title(row) for row in rows] == [
        "batch_size=4,total_steps=6,total_epochs=0.0",
        "other,batch_size=16,total_steps=1000,total_epochs=2.0",
        "other_12,batch_size=2,total_steps=3,total_epochs=0.0",
    ]
    assert [row.config.model_name for row in rows] == ["unet", "deeplab", "deeplab"]
    assert rows[2].config.model.rates == (12,) and rows[1].config.model.rates == (6,)
    # What is said on the command line holds for all rows.
    assert [row.config.augment.flip for row in rows] == [0.25] * 3


def test_a_field_given_as_the_file_has_it_holds_for_other_files(files, parse):
    """batch_size is 4 in the sweep's own file and 16 in that of the row."""
    _, other = files()
    path, _ = files({}, {"config": other})
    rows, overrides = read(parse, path, "--config.batch_size=4")
    assert overrides == {"batch_size": 4}
    assert [row.config.batch_size for row in rows] == [4, 4]


def test_a_field_of_a_model_for_all_rows(files, parse):
    """Each network that has the field gets it; one that has not is refused."""
    path, _ = files({}, {"model_name": "fcn"})
    rows, _ = read(parse, path, "--config.model.norm=batch")
    assert [row.config.model.norm for row in rows] == ["batch", "batch"]
    with pytest.raises(UserError, match="row 2 .*config.model: unknown value 'layout'"):
        read(parse, path, "--config.model.layout=released")


def test_another_network_for_all_rows(files, parse):
    path, other = files({"optim.lr": 0.1}, {"optim.lr": 0.2})
    rows, overrides = read(parse, path, "--config.model_name=fcn")
    assert overrides == {"model_name": "fcn"}
    assert [row.config.model_name for row in rows] == ["fcn", "fcn"]
    path, _ = files({"model_name": "fcn"}, {})
    with pytest.raises(UserError, match="--config.model_name: the sweep chooses"):
        read(parse, path, "--config.model_name=deeplab")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"config": 3}, "row 2 .*config is 3; expected 'FILE' or 'FILE:ARG'"),
        ({"config": "no.py"}, "row 2 .*--config no.py: no such file"),
        ({"config": "OTHER:x"}, "row 2 .*other.py: line 4: ValueError"),
        ({"config": "OTHER", "model.layout": "paper"}, "row 2 .*unknown value 'layo"),
        ({"model_name": "fcm"}, "row 2 .*unknown value 'fcm'; did you mean 'fcn'"),
        ({"model_name": "fcn", "model.widhs": ()}, "row 2 .*unknown value 'widhs'"),
        ({"model_name": "unet"}, "rows 1 and 2 of sweep.. give the same config"),
    ],
)
def test_bad_rows_are_refused_by_number(files, parse, row, message):
    _, other = files()
    row = {k: str(v).replace("OTHER", other) if k == "config" and v != 3 else v
           for k, v in row.items()}  # fmt: skip
    path, _ = files({}, row)
    with pytest.raises(UserError, match=message):
        read(parse, path)


def test_the_command_of_a_row_is_its_config(files, parse, tmp_path):
    _, other = files()
    path, _ = files(
        {"optim.lr": 0.2},
        {"model_name": "fcn", "model.skips": 16},
        {"model_name": "deeplab", "model.rates": (2, 4), "model.scales": (1.0, 0.5)},
        {"config": f"{other}:12"},
        {"config": other, "total_steps": 5, "model_name": "pspnet", "model.bins": ()},
    )
    words = ("--config.data.scenes_train=8", "--config.total_steps=7")
    for given in ((), words[:1]):
        rows, overrides = read(parse, path, *given)
        sweep = sweep_runs.Sweep(path, rows, overrides, [], 2)
        # As a report reads it.
        sweep_runs.save(tmp_path, sweep)
        assert sweep_runs.load(tmp_path) == sweep
        for run in sweep_runs.runs_of(sweep, tmp_path):
            program, _, module, *command = sweep_runs.command(sweep, run, "python")
            assert (program, module) == ("python", "experiments.train")
            config, _ = parse(*command)
            expected = config_lib.flatten(run.row.config) | {"seed": run.seed}
            assert config_lib.flatten(config) == expected
    with pytest.raises(UserError, match="--config.total_steps: the sweep chooses"):
        read(parse, path, *words)


def test_rows_of_other_networks_are_traced(files, parse, tmp_path):
    small = {"model.widths": (4, 4, 4, 4, 4), "model.fc_channels": 8}
    path, _ = files({}, {"model_name": "fcn", **small}, {"model_name": "frrn"})
    rows, _ = read(parse, path)
    for row in rows[:2]:
        sweep_rows.check_row(row, data=False)
    with pytest.raises(UserError, match="row frrn-.*"):
        bad = rows[2]._replace(config=rows[2].config.copy_and_resolve_references())
        bad.config.model.variant = "c"
        sweep_rows.check_row(bad, data=False)
