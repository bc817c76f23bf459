"""The command line, and what every program does before its work begins."""

import pwd
import sys
import time

import jax
import pytest

from experiments.shared import arguments, cli
from segjax import config as config_lib
from segjax.errors import UserError


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--config.a=1 --config F", "--config F --config.a=1"),
        ("--config.a=1 -config=F x", "-config=F --config.a=1 x"),
        ("--w d --config.a=1 --config F --n", "--config F --w d --config.a=1 --n"),
        ("--config A --config B", "--config A --config B"),
        ("--config", "--config"),
        ("--config=F -- --config x", "--config=F -- --config x"),
        ("-- --config=F", "-- --config=F"),
        ("--configs x --w d", "--configs x --w d"),
    ],
)
def test_the_config_file_comes_before_its_fields(words, expected):
    argv = ["program", *words.split()]
    assert arguments.config_first(argv) == ["program", *expected.split()]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.lr=1", "unknown flag --config.lr: .*did you mean --config.optim.lr"),
        ("--config.scale=1", "did you mean --config.augment.scale"),
        ("--config.optim.momentun=1", "no such field; did you mean 'momentum'"),
        ("--config.optim.x=1", "known: b2, .*weight_decay$"),
        ("--config.seed.x=1", "--config.seed.x: --config.seed is a value and has no"),
        ("--config.optim=1", "--config.optim is a group .* such as --config.optim.b2"),
        ("--noconfig.optim.nestero", "did you mean 'nesterov'"),
    ],
)
def test_fields_are_named_as_the_flags_that_set_them(monkeypatch, flag, message):
    monkeypatch.setattr(sys, "argv", ["program", flag])
    with pytest.raises(UserError, match=message) as caught:
        arguments.check_overrides(config_lib.make())
    assert "\n" not in str(caught.value)


def test_a_tuple_is_given_once(monkeypatch):
    flags = ["--config.augment.crop=8,8", "--config.augment.crop=9,9"]
    monkeypatch.setattr(sys, "argv", ["program", *flags])
    with pytest.raises(UserError, match="--config.augment.crop is given twice"):
        arguments.check_overrides(config_lib.make())
    monkeypatch.setattr(sys, "argv", ["program", flags[0], "--config.seed=1"])
    arguments.check_overrides(config_lib.make())


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "defines no get_config"),
        ("def get_config(): return 1", "must return what segjax.config.make returns"),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError"),
        ("\0", "null bytes|source code"),
    ],
)
def test_a_config_file_that_fails_is_one_line(tmp_path, text, message):
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        arguments.run_config_file(str(path))
    assert str(caught.value).startswith(f"--config {path}: ")


def test_a_missing_config_file_lists_those_beside_it(tmp_path):
    (tmp_path / "one.py").touch()
    with pytest.raises(UserError, match=r"no such file; .* holds one.py"):
        arguments.run_config_file(f"{tmp_path}/two.py:arg")


@pytest.fixture
def cache_folder():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_without_a_home_folder_programs_run_without_the_cache(
    monkeypatch, capsys, cache_folder
):
    monkeypatch.delenv("HOME", raising=False)

    def unknown_user(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown_user)
    before = jax.config.jax_compilation_cache_dir
    cli._open_cache("~/.cache/segjax/compiled")
    error = capsys.readouterr().err
    assert "--compilation_cache=~/.cache/segjax/compiled: " in error
    assert "compiled programs are not kept" in error and error.count("\n") == 1
    assert jax.config.jax_compilation_cache_dir == before


def test_the_cache_is_opened_or_left_alone(tmp_path, capsys, cache_folder):
    (tmp_path / "file").touch()
    cli._open_cache(str(tmp_path / "file" / "cache"))
    assert "Not a directory; compiled programs are not kept" in capsys.readouterr().err
    cli._open_cache(str(tmp_path / "cache"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
    cli._open_cache("")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "found, plugins, chosen, expected",
    [
        (["libtpu"], [], None, "cpu"),
        (["libtpu"], ["cuda"], None, None),
        (["libtpu", "jax_plugins"], [], None, None),
        (["libtpu"], [], "tpu,cpu", "tpu,cpu"),
        ([], [], None, None),
    ],
)
def test_libtpu_is_not_tried_where_there_is_no_tpu(
    monkeypatch, found, plugins, chosen, expected
):
    class Config:
        jax_platforms = chosen

        def update(self, name, value):
            setattr(self, name, value)

    config = Config()
    monkeypatch.setattr(cli.jax, "config", config)
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: name if name in found else None
    )
    monkeypatch.setattr(cli.importlib.metadata, "entry_points", lambda group: plugins)
    cli._skip_absent_tpus()
    assert config.jax_platforms == expected


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "2"}, False),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_NTASKS": "", "SLURM_STEP_ID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "four"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({}, False),
    ],
)
def test_jobs_of_several_processes_are_recognized(monkeypatch, variables, expected):
    monkeypatch.setattr(cli.os, "environ", variables)
    assert cli._in_multi_process_job() is expected


def test_long_work_says_that_it_goes_on(capsys):
    with cli.working("compiling", every=0.01):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "compiling ..." and len(lines) > 2
    assert set(lines[1:]) == {"compiling for 0 min ..."}
    with pytest.raises(UserError), cli.working("compiling", every=60):
        raise UserError("no memory")
    assert capsys.readouterr().err == "compiling ...\n"
