"""What the benchmark measures, on a network and images small enough to run."""

import contextlib
import itertools
import json
import re
import time
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import first_step
from experiments.benchmarks import train_step as benchmark
from experiments.shared import training_run
from segjax import config as config_lib
from segjax import training
from segjax.errors import UserError

SIDE = 32
STEPS, ROUNDS = 3, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4, 8)},
        data={
            "scenes_size": (SIDE, SIDE),
            "scenes_train": 12,
            "scenes_validation": 8,
            "data_dir": str(tmp_path_factory.mktemp("data")),
        },
        batch_size=8,
        eval_batch_size=4,
        threads=1,
    )


@pytest.fixture(scope="module")
def results(config):
    return benchmark.benchmark(config, steps=STEPS, rounds=ROUNDS, forward=True)


def test_nothing_compiles_after_the_first_step(results):
    assert results["compilations"]["first_step"] >= 2  # the state and the step
    assert results["compilations"]["after_first_step"] == 0


def test_a_step_that_compiles_again_is_noticed(config):
    def make_train_step(params):
        def step(state, batch):
            del batch
            # Jitted anew at each call.
            return state.replace(step=jax.jit(lambda x: x + 1)(state.step)), {}

        return step

    setup = training_run.build_run(config)
    setup = setup._replace(
        make_train_step=make_train_step,
        init=lambda: training.TrainState(jnp.zeros(()), {}, {}, {}),
    )
    _, results = benchmark.measure_training(setup, config, steps=2, rounds=1)
    # 8 steps to settle and 2 measured ones, with either input.
    assert results["compilations"]["after_first_step"] == 2 * (8 + 2)


def test_images_cross_to_the_device_once_and_as_uint8(results):
    image, label = (results["transfer"][key] for key in ("image", "label"))
    assert (image["dtype"], label["dtype"]) == ("uint8", "uint8")
    assert image["shape"] == [SIDE, SIDE, 3]
    assert image["bytes_per_image"] == SIDE * SIDE * 3
    assert label["bytes_per_image"] == SIDE * SIDE


def test_transferred_counts_bytes_and_copies():
    mesh = jax.make_mesh((4,), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    image = jax.device_put(np.zeros((8, 2, 3, 1), np.float32), everywhere)
    found = benchmark.transferred({"image": image}, 8)["image"]
    assert found["dtype"] == "float32"
    assert found["bytes_per_image"] == 2 * 3 * 4 * jax.device_count()


def test_times_rates_and_shares_fit_together(results, config):
    step = results["step"]
    for row in (step["synthetic"], step["real"]):
        spread = row["step_seconds"]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        # The speed of a round lies between those of its fastest and slowest step.
        slowest, fastest = (config.batch_size / spread[key] for key in ("max", "min"))
        assert slowest <= row["images_per_second"] <= fastest
    assert 0 <= step["input_wait"] <= 1
    assert step["real_over_synthetic"] > 0
    feed = results["input"]
    batches = feed["images_per_second"] / feed["batches_per_second"]
    assert batches == pytest.approx(config.batch_size)
    core = feed["one_core"]
    assert core["images_per_second"] == pytest.approx(
        1 / (core["read_seconds"] + core["augment_seconds"])
    )
    assert core["augmented_images_per_second"] > core["images_per_second"]
    forward = results["forward"]
    assert forward["image"] == [SIDE, SIDE, 3]
    assert forward["images_per_second"] > 0


@pytest.mark.parametrize(("input_seconds", "step_seconds"), [(3.0, 0.0), (1.0, 3.0)])
def test_waiting_is_told_from_working(input_seconds, step_seconds, monkeypatch):
    """By a clock of our own, and a watcher that looks as soon as a step is launched."""
    now = [0.0]

    class Watcher(contextlib.nullcontext):
        def __enter__(self):
            return self

        def submit(self, call, *arguments):
            found = call(*arguments)
            return SimpleNamespace(result=lambda: found)

    monkeypatch.setattr(benchmark, "ThreadPoolExecutor", Watcher)
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(benchmark, "time", clock)

    def slow(seconds, value):
        now[0] += seconds
        return value

    feed = (slow(input_seconds, (None, i)) for i in itertools.count())
    state, times = benchmark.run_steps(
        lambda state, batch: slow(step_seconds, (state + batch, {"loss": 0.0})),
        0,
        feed=feed,
        steps=5,
    )
    assert state == 0 + 1 + 2 + 3 + 4
    np.testing.assert_allclose(times.waits, [input_seconds] * 5)
    np.testing.assert_allclose(times.seconds, [input_seconds + step_seconds] * 5)


def test_opencv_threads_are_restored(config):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    benchmark.measure_one_core(training_run.build_run(config), config, 1)
    assert cv2.getNumThreads() == 2
    cv2.setNumThreads(before)


def test_first_step_in_a_process_of_its_own(config, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    monkeypatch.delenv("XLA_FLAGS")
    config_lib.save(config, tmp_path / "config.json")
    began = time.time()
    parts = first_step._first_step_of_process(
        tmp_path / "config.json", tmp_path / "cache"
    )
    assert list(parts) == ["start", "input", "state", "step"]
    assert min(parts.values()) > 0
    assert sum(parts.values()) <= time.time() - began
    assert (tmp_path / "cache").is_dir()


def test_cold_and_cached_share_a_new_folder_per_round(config, monkeypatch):
    seen = []

    def process(path, cache):
        assert config_lib.load(path).to_dict() == config.to_dict()
        seen.append((cache, cache.exists()))
        cache.mkdir(exist_ok=True)
        # The middle one of 1, 3, 2 and of 10, 30, 20 s.
        cold = not seen[-1][1]
        return {"start": (1, 3, 2)[(len(seen) - 1) // 2] * (10 if cold else 1)}

    monkeypatch.setattr(first_step, "_first_step_of_process", process)
    times = first_step.measure(config, rounds=3)
    assert [existed for _, existed in seen] == [False, True] * 3
    folders = [folder for folder, _ in seen]
    assert folders[::2] == folders[1::2] and len(set(folders)) == 3
    assert times["cold"] == {"seconds": 20, "parts": {"start": 20}}
    assert times["cached"] == {"seconds": 2, "parts": {"start": 2}}


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (2, "hello\nerror: no such file\n", "no such file"),
        (1, "Traceback\nKeyError: 1\n", "the process .* failed: KeyError: 1"),
        (-9, "", "the process .* failed: no message"),
    ],
)
def test_a_failed_process_is_one_line(code, stderr, message, tmp_path, monkeypatch):
    done = SimpleNamespace(returncode=code, stdout="", stderr=stderr)
    monkeypatch.setattr(first_step.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match=f"^{message}$"):
        first_step._first_step_of_process(tmp_path / "config.json", tmp_path)


def run_main(config, results, output, monkeypatch):
    values = dict(config=config, steps=STEPS, rounds=ROUNDS, first_step=True)
    values |= dict(forward=True, output=str(output))
    monkeypatch.setattr(
        benchmark, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**values))
    )
    run = {"seconds": 5.0, "parts": {"start": 1.0, "step": 4.0}}
    first = {"cold": run, "cached": run}
    monkeypatch.setattr(first_step, "measure", lambda *_: first)
    monkeypatch.setattr(benchmark, "benchmark", lambda *_, **__: results)
    monkeypatch.setattr(benchmark.cli, "start", lambda: None)
    return benchmark.main([])


def test_program_prints_a_table_and_writes_json(
    config, results, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "benchmark.json"
    assert run_main(config, results, output, monkeypatch) == 0
    written = json.loads(output.read_text())
    assert {"step", "input", "transfer", "first_step", "forward"} <= written.keys()
    assert {"compilations", "config", "devices", "git_commit"} <= written.keys()
    assert written["config"]["model"]["widths"] == [4, 8]
    assert written["devices"] == "4 x cpu"
    assert written["jax"] == jax.__version__
    text = capsys.readouterr().out
    assert f"jax {jax.__version__}" in text
    rows = [line for line in text.splitlines() if re.search(r" {2}\S", line)]
    assert len(rows) == 16
    # Aligned: the value column ends at the same place in every row.
    ends = {re.match(r"(\s*\S.*?)\s{2,}(\S+( \S+)?)", row).end() for row in rows}
    assert len(ends) == 1
    assert re.search(r"to the device, image +3,072 bytes  uint8 32x32x3", text)


def test_program_fails_if_anything_was_compiled_again(
    config, results, tmp_path, monkeypatch, capsys
):
    again = results | {"compilations": {"first_step": 2, "after_first_step": 3}}
    assert run_main(config, again, tmp_path / "b.json", monkeypatch) == 1
    assert "error: 3 programs were compiled" in capsys.readouterr().err


def test_output_in_a_missing_folder_fails_at_once(config, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--output"):
        run_main(config, {}, tmp_path / "missing" / "b.json", monkeypatch)
