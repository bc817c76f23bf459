"""The programs that time networks and operators, on tiny ones."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import measuring
from experiments.benchmarks import networks as step_times
from experiments.benchmarks import operators as op_times
from segjax import models, published
from segjax.errors import UserError
from segjax.models.network import abstract_variables

TINY = published.Network("unet", dict(padding="same", widths=(4, 8)), 3, (16, 16, 3))


@pytest.fixture(scope="module")
def tiny():
    return step_times.measure(TINY, size=15, batch=2, repeats=2)


def run_main(program, monkeypatch, **values):
    values = {k: types.SimpleNamespace(value=v) for k, v in values.items()}

    class Flags(dict):
        def __getattr__(self, name):
            return self[name].value

    names = types.SimpleNamespace(FLAGS=Flags(values))
    monkeypatch.setattr(program, "flags", names)
    monkeypatch.setattr(program.cli, "start", lambda: None)
    return program.main([])


def run_steps(monkeypatch, **values):
    defaults = dict(models=[], size=16, batch=1, repeats=1, json="", markdown="")
    return run_main(step_times, monkeypatch, **(defaults | values))


def test_every_model_has_a_row():
    step_times.check_networks(step_times.NETWORKS)
    found = {published.NETWORKS[name].model for name in step_times.NETWORKS}
    assert found == set(models.MODELS)
    assert step_times.REFERENCE in step_times.NETWORKS


def test_measure(tiny):
    assert tiny["image"] == 16  # the next multiple of the stride
    # 3x3 convolutions and biases, enc and dec of two levels, transposed 2x2, 1x1 of 21.
    conv = [(3, 4), (4, 4), (4, 8), (8, 8), (8, 4), (4, 4)]
    up, score = (2 * 2 * 8 * 4 + 4), (4 * 21 + 21)
    assert tiny["parameters"] == sum(9 * i * o + o for i, o in conv) + up + score
    cells = [16 * 16, 16 * 16, 8 * 8, 8 * 8, 16 * 16, 16 * 16]
    macs = sum(9 * i * o * n for (i, o), n in zip(conv, cells))
    macs += 4 * 8 * 4 * 64 + 4 * 21 * 256
    assert tiny["flops"] == 2 * 2 * macs
    assert tiny["bytes"] > 4 * tiny["parameters"]
    for name in ("forward", "step"):
        assert tiny[name]["seconds"] > 0
        assert tiny[name]["compile_seconds"] > 0


def test_random_state_has_the_shapes_and_types_of_the_model():
    fields = dict(padding="same", widths=(4, 8), norm="batch")
    model = models.UNet(num_classes=3, **fields)
    state, expected = step_times.random_state(model), abstract_variables(model, 3)

    def check(leaf, abstract):
        assert (leaf.shape, leaf.dtype) == (abstract.shape, abstract.dtype)

    jax.tree.map(check, state.params, expected["params"])
    jax.tree.map(check, state.batch_stats, expected["batch_stats"])
    logits, _ = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        np.full((1, 8, 8, 3), 100, np.uint8),
        train=False,
    )
    assert jnp.isfinite(logits).all() and jnp.std(logits) > 0


def test_functions_take_turns():
    called = []

    def function(name):
        return lambda: called.append(name)

    clock = iter(range(1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))
        names = {name: function(name) for name in "ab"}
        seconds = measuring.in_turns(names, repeats=3)
    # One call to warm up and one to see how long it takes; then in turns.
    assert called == list("aabb" + "ab" * 3)
    assert seconds == {"a": 1.0, "b": 1.0}


def test_table_is_relative_to_the_reference(tiny):
    double = tiny | {"step": tiny["step"] | {"seconds": 2 * tiny["step"]["seconds"]}}
    found = step_times.rows({step_times.REFERENCE: tiny, "deconvnet": double})
    assert [row[0] for row in found[1:]] == [step_times.REFERENCE, "deconvnet"]
    assert [row[-1] for row in found[1:]] == ["1.00", "2.00"]
    assert step_times.rows({"deconvnet": tiny})[1][-1] == "-"


def test_results_are_added_to_those_in_the_file(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_times, "measure", lambda network, **_: tiny)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    path, page = tmp_path / "times.json", tmp_path / "times.md"
    run_steps(monkeypatch, models=["unet"], json=str(path))
    files = dict(json=str(path), markdown=str(page))
    run_steps(monkeypatch, models=["deconvnet"], **files)
    assert json.loads(path.read_text())["results"].keys() == {"unet", "deconvnet"}
    table = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| deconvnet", "| unet"]
    assert "--size=16 --batch=1 --repeats=1" in page.read_text()
    assert "deconvnet" in capsys.readouterr().out
    # Numbers of another size do not belong into the same table.
    with pytest.raises(UserError, match="its size is 16, of this run 32"):
        run_steps(monkeypatch, models=["unet"], json=str(path), size=32)
    whole = path.read_text()
    for text, message in (
        ("{}", "'conditions' is a required property"),
        (whole[:-20], "not valid JSON"),
        (whole.replace('"seconds"', '"second"', 1), "the times of unet|deconvnet"),
        (whole.replace('"unet"', '"unett"'), "unknown value 'unett'; did you mean"),
        ("", "is empty"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path}.*({message})"):
            run_steps(monkeypatch, models=["unet"], json=str(path))


def test_bad_input_is_found_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(step_times, "measure", None)
    with pytest.raises(UserError, match="--models: .*did you mean 'unet'"):
        run_steps(monkeypatch, models=["u-net"])
    missing = str(tmp_path / "missing" / "t.json")
    with pytest.raises(UserError, match="--json .* is not a folder"):
        run_steps(monkeypatch, json=missing)
    with pytest.raises(UserError, match="did you mean 'conv 1x1'"):
        run_main(
            op_times,
            monkeypatch,
            operators=["conv1x1"],
            repeats=1,
            json="",
            markdown="",
        )


def small(operator):
    """The same operator on a map and with channels that compile and run at once."""
    size = {1: 1, 7: 14, 16: 16}.get(operator.shapes[0][1], 15)
    groups = operator.options.get("groups", 1)
    side = 29 if operator.options.get("dilation") else size
    maps, *kernels = operator.shapes
    crop = {"crop": (32, 32)} if "crop" in operator.options else {}
    return operator._replace(
        shapes=(
            (1, side, side, 4),
            *((*kernel[:2], 4 // groups, 6) for kernel in kernels),
        ),
        options={**operator.options, **crop},
    )


@pytest.mark.parametrize("name", op_times.OPERATORS)
def test_both_forms_of_an_operator_are_the_same(name):
    operator = small(op_times.OPERATORS[name])
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in operator.shapes]
    ours, plain = (
        form(*inputs, **operator.options) for form in (operator.ours, operator.plain)
    )
    np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_operator_table(tmp_path, monkeypatch, capsys):
    name, page = "max pool 2x2, stride 2", tmp_path / "op.md"
    tiny = op_times.OPERATORS[name]._replace(shapes=((1, 4, 4, 2),))
    monkeypatch.setitem(op_times.OPERATORS, name, tiny)
    given = dict(operators=[name], repeats=1, json="", markdown=str(page))
    assert run_main(op_times, monkeypatch, **given) == 0
    assert f"| {name} | 1x4x4x2 | - |" in page.read_text()
    # Another result is an error.
    wrong = tiny._replace(ours=lambda x, **how: tiny.ours(x, **how) + 1)
    monkeypatch.setitem(op_times.OPERATORS, name, wrong)
    assert run_main(op_times, monkeypatch, **given) == 1
    assert "differ for max pool" in capsys.readouterr().err
