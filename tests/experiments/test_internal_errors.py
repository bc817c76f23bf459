"""Internal errors of XLA that come back at every start."""

import jax
import pytest

from experiments import train
from experiments.shared import cli, internal_errors

FAULT = "INTERNAL: Core halted at 0x7f{start}\nmore that differs: {start}"


def code_of(workdir, start, text=FAULT):
    """The exit code of a start of training that ends with this error."""

    def main(argv):
        with internal_errors.counted(workdir):
            raise jax.errors.JaxRuntimeError(text.format(start=start))

    with pytest.raises(SystemExit) as caught:
        cli._guarded(main, [])
    return caught.value.code


def test_the_same_internal_error_three_times_in_a_row_is_no_lost_device(
    tmp_path, capsys
):
    assert [code_of(tmp_path, start) for start in range(3)] == [cli.LOST, cli.LOST, 1]
    assert "another restart will not help" in capsys.readouterr().err
    # Another one, and the same after a checkpoint, count from the beginning.
    assert code_of(tmp_path, 3, "INTERNAL: no such thing") == cli.LOST
    assert [code_of(tmp_path, start) for start in range(2)] == [cli.LOST] * 2
    (tmp_path / "checkpoints/20").mkdir(parents=True)
    assert code_of(tmp_path, 2) == cli.LOST
    # Lost connections are never counted.
    codes = [code_of(tmp_path, i, "UNAVAILABLE: no network") for i in range(4)]
    assert codes == [cli.LOST] * 4
    # Nothing is told of a file that cannot be written.
    assert code_of(tmp_path / "absent", 0) == cli.LOST


def test_training_counts_them(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: always")

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(train.cli, "start", lambda **_: None)
    monkeypatch.setattr(train.cli, "flag_value", lambda name: "configs/quickstart.py")
    for name in ("_WORKDIR", "_CONFIG", "_PROFILE"):
        flag = type("Flag", (), {"value": str(tmp_path)})
        monkeypatch.setattr(train, name, flag, raising=False)
    monkeypatch.setattr(train.chains, "note", lambda *_: "")
    kinds = []
    for _ in range(3):
        with pytest.raises(RuntimeError) as caught:
            train.main([])
        kinds.append(type(caught.value))
    assert kinds == [jax.errors.JaxRuntimeError] * 2 + [RuntimeError]
