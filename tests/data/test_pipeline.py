"""The input pipeline: what a batch depends on, and processes that read and die."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from segjax.data import pipeline, transforms
from segjax.data.workers import WorkerDied
from segjax.errors import UserError

ROOT = Path(__file__).parents[2]


class Source:
    """Twelve 8x8 images that hold their own index."""

    sizes = [(8, 8)] * 12

    def __len__(self):
        return 12

    def __getitem__(self, i):
        image = np.full((8, 8, 3), i, np.uint8)
        return {"image": image, "label": image[..., 0], "id": f"im{i}"}


AUGMENT = transforms.Options(crop=(6, 6), scale=(0.5, 2), flip=0.5, noise=3)


def take(n, **options):
    stream = pipeline.train_batches(Source(), AUGMENT, batch_size=4, seed=1, **options)
    return [next(stream) for _ in range(n)]


@pytest.fixture(scope="module")
def stream():
    return take(7)


def same(a, b):
    return all((a[key] == b[key]).all() for key in ("image", "label", "id"))


def test_batches_depend_on_seed_and_index_only(stream):
    assert all(map(same, stream, take(7, threads=1)))
    assert all(map(same, stream[3:], take(4, start=3)))
    assert not same(stream[0], stream[3])


def test_processes_split_each_batch(stream):
    shares = [take(7, process=(i, 2)) for i in range(2)]
    for whole, first, second in zip(stream, *shares, strict=True):
        for key in ("image", "label", "id"):
            joined = np.concatenate([first[key], second[key]])
            assert (joined == whole[key]).all()


def test_every_epoch_visits_every_image_once_in_a_new_order(stream):
    ids = np.concatenate([batch["id"] for batch in stream[:6]])
    assert sorted(ids[:12]) == sorted(ids[12:]) == sorted(f"im{i}" for i in range(12))
    assert list(ids[:12]) != list(ids[12:])


def test_evaluation_counts_every_image_once():
    source = Source()
    for count in (1, 2):
        seen = []
        for i in range(count):
            batches = list(
                pipeline.eval_batches(
                    source, batch_size=8, channels=3, process=(i, count)
                )
            )
            assert {len(batch["id"]) for batch in batches} == {8 // count}
            for batch in batches:
                for name, label in zip(batch["id"], batch["label"], strict=True):
                    assert (label == 255).all() == (name == "")
                    seen += [name] if name else []
        assert sorted(seen) == sorted(f"im{i}" for i in range(12))


def test_mixed_sizes_share_padded_shapes():
    sizes = [(h, 50) for h in range(40, 52)]
    plan = pipeline.eval_plan(sizes, 8)
    assert len({shape for shape, _ in plan}) == 4
    assert all(shape[0] >= sizes[i][0] for shape, indices in plan for i in indices)
    assert sorted(i for _, indices in plan for i in indices) == list(range(12))
    few = pipeline.eval_plan([(8, 8), (9, 8), (8, 8)], 8)
    assert few == [((8, 8), [0, 2]), ((9, 8), [1])]


def test_large_images_are_left_out_and_batches_are_limited():
    """At most 100 pixels per image, and per device and batch, but for single images."""
    sizes = [(5, 5)] * 9 + [(10, 10)] * 3 + [(10, 11)]
    plan = pipeline.eval_plan(sizes, 8, max_pixels=100, devices=2)
    # Four small images per device; of the others one.
    assert plan == [
        *(((5, 5), list(range(8))), ((5, 5), [8])),
        *(((10, 10), [9, 10]), ((10, 10), [11])),
    ]
    plan = pipeline.eval_plan(sizes, 8, max_pixels=50, devices=2)
    assert [len(indices) for _, indices in plan] == [4, 4, 1]
    assert len(pipeline.eval_plan(sizes, 8)) == 4  # no limit: 8 + 1, 3, 1
    exact = pipeline.eval_plan([(h, 50) for h in range(40, 52)], 8, padding=0)
    assert len({shape for shape, _ in exact}) == 12


def test_limited_batches_hold_every_image_once():
    source = Source()
    for count in (1, 2):
        seen = []
        for i in range(count):
            for batch in pipeline.eval_batches(
                source,
                batch_size=8,
                channels=3,
                process=(i, count),
                max_pixels=2 * max(h * w for h, w in source.sizes),
                devices=2,
            ):
                assert len(batch["id"]) == len(batch["image"]) < 8
                seen += [name for name in batch["id"] if name]
        assert sorted(seen) == sorted(f"im{i}" for i in range(12))


def test_a_batch_that_cannot_be_split_is_refused():
    """Rounding down would leave images out of an evaluation without a word."""
    with pytest.raises(UserError, match="batch of 9 .* 2 processes"):
        pipeline.eval_batches(Source(), batch_size=9, channels=3, process=(0, 2))
    with pytest.raises(UserError, match="batch of 9 .* 2 processes"):
        pipeline.train_batches(Source(), AUGMENT, batch_size=9, seed=0, process=(1, 2))


class Slow(Source):
    """Counts how many threads read at once; each waits for so many of them."""

    def __init__(self, expected):
        super().__init__()
        self.expected, self.reading, self.most = expected, 0, 0
        self.changed = threading.Condition()

    def __getitem__(self, i):
        with self.changed:
            self.reading += 1
            self.most = max(self.most, self.reading)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.expected, timeout=30)
        time.sleep(0.02)  # time for more of them than there should be
        with self.changed:
            self.reading -= 1
        return super().__getitem__(i)


@pytest.mark.parametrize("threads", [0, 1, 3, 9])
def test_as_many_threads_read_as_asked_for(threads, caplog):
    source = Slow(max(threads, 1))
    stream = pipeline.train_batches(
        source, AUGMENT, batch_size=1, seed=1, threads=threads
    )
    for _ in range(36):
        next(stream)
    assert source.most == max(threads, 1)
    source = Slow(max(threads, 1))
    batches = pipeline.eval_batches(source, batch_size=1, channels=3, threads=threads)
    assert len(list(batches)) == 12
    assert source.most == max(threads, 1)
    assert not caplog.records


# Worker processes


class BadFile(Source):
    def __getitem__(self, i):
        if i == 7:
            raise UserError("images/7.png: cannot be decoded: replace or remove it")
        return super().__getitem__(i)


def test_a_bad_file_is_one_line_from_a_worker():
    stream = pipeline.train_batches(BadFile(), AUGMENT, batch_size=4, seed=1, workers=1)
    with pytest.raises(UserError) as caught:
        [next(stream) for _ in range(3)]
    stream.close()
    assert str(caught.value) == "images/7.png: cannot be decoded: replace or remove it"


def test_workers_change_nothing_and_the_death_of_one_is_one_line(stream):
    expected = stream[:4]
    stream = pipeline.train_batches(Source(), AUGMENT, batch_size=4, seed=1, workers=2)
    assert all(same(batch, next(stream)) for batch in expected)
    first = multiprocessing.active_children()[0]
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied) as caught:
        [next(stream) for _ in range(30)]
    message = str(caught.value)
    assert "killed by SIGKILL" in message and "--config.workers" in message
    assert "\n" not in message and isinstance(caught.value, UserError)
    with pytest.raises(StopIteration):
        next(stream)
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


PROGRAM = """
import json, multiprocessing, signal, sys, time
import numpy as np
from segjax.data import pipeline, transforms

class Source:
    sizes = [(300, 300)] * 12
    identities = []
    def __len__(self):
        return 12
    def __getitem__(self, i):
        image = np.full((300, 300, 3), i, np.uint8)
        return {"image": image, "label": image[..., 0], "id": f"im{i}"}

if __name__ == "__main__":
    options = transforms.Options()
    stream = pipeline.train_batches(Source(), options, batch_size=4, seed=1, workers=2)
    kept = 0
    # Shells start jobs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("starting", flush=True)
    try:
        for batch in stream:
            kept += 1
            if kept == 3:
                workers = [p.pid for p in multiprocessing.active_children()]
                print(json.dumps(workers), flush=True)
            time.sleep(0.02)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        sys.exit(7)
"""


@pytest.fixture
def program(tmp_path):
    """A user's own program, which parses no flags, in a process group of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()  # it would run on for ever


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_program_that_is_killed(program):
    assert program.stdout.readline() == "starting\n"
    workers = json.loads(program.stdout.readline())
    assert len(workers) == 2 and all(map(is_running, workers))
    program.kill()
    assert program.communicate(timeout=60)[1] == ""
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


@pytest.mark.parametrize(
    "delay", [None, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 1, 2, 4))]
)
def test_ctrl_c_prints_nothing_of_the_workers(program, delay):
    """Also while they start and still import their modules."""
    assert program.stdout.readline() == "starting\n"
    if delay is None:
        json.loads(program.stdout.readline())
    else:
        time.sleep(delay)
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 7 and out.endswith("stopped\n")
    assert err == ""
