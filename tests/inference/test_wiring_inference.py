"""Which field reaches which function: prediction, its programs, files and pictures."""

import inspect
import json
import threading
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from workdirs import make_run

from experiments import evaluate, export, predict
from experiments.shared import (
    evaluation,
    exported_loader,
    predict_flags,
    prediction_folder,
    training_log,
)
from segjax import checkpoint, inference, sharding, training, viz
from segjax import config as config_lib
from segjax.data import datasets, windows
from segjax.errors import UserError
from segjax.inference import PredictOptions, collection, large, predictors, trained
from segjax.inference.stored import file_version
from segjax.ops import geometry, mean_field

PALETTE = np.array([[200, 10, 20], [0, 220, 40], [30, 60, 240]], np.uint8)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# Methods against NumPy, from lists of windows written by hand


class Place(nn.Module):
    """Logits of the pixel and of its place in the window; one parameter."""

    margin: int = 0

    @property
    def tiling(self):
        if not self.margin:
            return geometry.ANY_SIZE
        return geometry.Tiling(step=2, offset=1, margin=self.margin, minimum=7)

    @nn.compact
    def __call__(self, images, train):
        bias = self.param("bias", nn.initializers.zeros, (3,))
        rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
        place = np.stack([rows, 2 * columns, rows * columns], -1) / 30
        logits = images.astype(jnp.float32) / 100 + place + bias
        m = self.margin
        return logits[:, m : logits.shape[1] - m, m : logits.shape[2] - m], {}


BIASES = ((0.3, -0.2, 0.0), (-0.5, 0.4, 0.9))
VARIABLES = tuple({"params": {"bias": np.float32(bias)}} for bias in BIASES)


def place(image, biases, margin=0):
    """What the ensemble says of one window [h, w, 3]."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    logits = image / 100 + np.stack([rows, 2 * columns, rows * columns], -1) / 30
    logits = logits[margin : len(image) - margin, margin : image.shape[1] - margin]
    return np.mean([softmax(logits + np.array(bias)) for bias in biases], axis=0)


def averaged(image, starts, window, biases, margin=0):
    """The mean over windows that start at all pairs of rows and columns."""
    side = [length - 2 * margin for length in window]
    shape = [axis[-1] + length for axis, length in zip(starts, side)]
    total, count = np.zeros((*shape, 3)), np.zeros((*shape, 1))
    for row in starts[0]:
        for column in starts[1]:
            cut = image[row : row + window[0], column : column + window[1]]
            at = np.s_[row : row + side[0], column : column + side[1]]
            total[at] += place(cut, biases, margin)
            count[at] += 1
    assert count.min() > 0
    return total / count


# (window, stride) -> where windows start along 11 rows and 14 columns.
STARTS = {
    ((5,), 0.4): ([0, 2, 4, 6], [0, 2, 4, 6, 8, 9]),
    ((5,), 2 / 3): ([0, 4, 6], [0, 4, 8, 9]),
    ((5,), 1.0): ([0, 5, 6], [0, 5, 9]),
    ((4, 6), 0.5): ([0, 2, 4, 6, 7], [0, 3, 6, 8]),
    ((11, 3), 0.9): ([0], [0, 3, 6, 9, 11]),
}
SIZE = (11, 14)


@pytest.mark.parametrize("window, stride", STARTS)
def test_windows_are_where_they_should_be(window, stride):
    image = pixels(*SIZE, 3)
    starts, sides = STARTS[window, stride], (*window, *window)[:2]
    expected = averaged(image.astype(float), starts, sides, BIASES)
    choice = PredictOptions(window=window, stride=stride)
    models = (Place(), Place())
    found = jax.jit(inference.compose(models, choice))(VARIABLES, image[None])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)

    # The same of an image in parts; the windows cut are those of the list.
    layout = large.layout(models, choice, SIZE)
    assert (layout.rows, layout.columns) == starts
    seen = []

    def run(batch):
        seen.extend(batch)
        return np.stack([place(cut, BIASES) for cut in batch.astype(float)])

    rows = large.stream(run, windows.array_windows(image, 3), layout=layout, batch=1)
    np.testing.assert_allclose(np.concatenate(list(rows)), expected, atol=1e-5)
    places = [(row, column) for row in starts[0] for column in starts[1]]
    for cut, (row, column) in zip(seen, places, strict=True):
        expected = image[row : row + sides[0], column : column + sides[1]]
        np.testing.assert_array_equal(cut, expected)


TILES = {  # side of the tile -> its starts along 10 rows and 14 columns; margin 2
    7: ([0, 2, 4, 6, 8], [0, 2, 4, 6, 8, 10, 12]),  # 3 predicted, steps of 2
    9: ([0, 4, 8], [0, 4, 8, 12]),  # 5 predicted, steps of 4
    11: ([0, 6], [0, 6, 12]),
    19: ([0], [0]),
}


@pytest.mark.parametrize("tile", TILES)
def test_tiles_are_where_they_should_be(tile):
    size, margin, image = (10, 14), 2, pixels(10, 14, 3, seed=1)
    starts = TILES[tile]
    rim = [
        (margin, axis[-1] + tile - margin - length)
        for axis, length in zip(starts, size)
    ]
    extended = np.pad(image, [*rim, (0, 0)], mode="reflect").astype(float)
    expected = averaged(extended, starts, (tile, tile), BIASES, margin)[:10, :14]
    models, choice = (Place(margin), Place(margin)), PredictOptions(tile=tile)
    found = jax.jit(inference.compose(models, choice))(VARIABLES, image[None])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)

    layout = large.layout(models, choice, size)
    assert (layout.rows, layout.columns) == starts and layout.margin == margin

    def run(batch):
        return np.stack([place(cut, BIASES, margin) for cut in batch.astype(float)])

    rows = large.stream(run, windows.array_windows(image, 3), layout=layout, batch=3)
    np.testing.assert_allclose(np.concatenate(list(rows)), expected, atol=1e-5)


def test_scales_and_mirror_images_of_windows_in_parts():
    """Of an image in parts they are those of each window, or tile, alone."""
    image = pixels(*SIZE, 3).astype(np.float32)
    cut = image[:5, 2:7]

    def mirrored(x, margin=0):
        both = [place(x, BIASES, margin), place(x[:, ::-1], BIASES, margin)[:, ::-1]]
        return np.mean(both, axis=0)

    choice = PredictOptions(window=(5,), stride=0.4, flip=True, scales=(1, 2))
    run = jax.jit(large.window_predictor((Place(), Place()), choice))
    larger = cv2.resize(mirrored(cv2.resize(cut, (10, 10))), (5, 5))
    expected = (mirrored(cut) + larger) / 2
    np.testing.assert_allclose(run(VARIABLES, cut[None])[0], expected, atol=1e-5)

    tile = image[:9, 3:12]
    models = (Place(2), Place(2))
    for flip, expected in ((True, mirrored(tile, 2)), (False, place(tile, BIASES, 2))):
        choice = PredictOptions(tile=9, flip=flip)
        run = jax.jit(large.window_predictor(models, choice))
        found = run(VARIABLES, tile[None])
        assert found.shape == (1, 5, 5, 3)
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_stride_and_window_of_images_in_parts():
    options = PredictOptions(window=(10, 12), stride=0.5)
    layout = large.layout((Place(),), options, (20, 24))
    assert layout.window == (10, 12)
    assert (layout.rows, layout.columns) == ([0, 5, 10], [0, 6, 12])
    layout = large.layout((Place(),), PredictOptions(stride=0.25), (1280, 1024))
    assert (layout.rows, layout.columns) == ([0, 256], [0])


def test_images_in_parts_default_to_windows_of_1024():
    """Two thirds of a window apart; the last one ends at the border."""
    layout = large.layout((Place(),), PredictOptions(), (2000, 900))
    assert layout.window == (1024, 1024)
    assert (layout.rows, layout.columns) == ([0, 683, 976], [0])
    assert layout.before == (0, 62)  # 124 columns are missing, half on each side
    layout = large.layout((Place(2),), PredictOptions(), (1500, 30))
    assert layout.window == (1025, 1025)  # an odd side, as the model asks for
    assert (layout.rows, layout.columns) == ([0, 1020], [0])
    with pytest.raises(UserError, match="different margins or steps"):
        large.layout((Place(), Place(2)), PredictOptions(), (9, 9))
    with pytest.raises(UserError, match="only be predicted at scale 1"):
        large.layout((Place(2),), PredictOptions(scales=(2.0,)), (9, 9))


def test_the_whole_method_against_numpy():
    """Two models in windows, mirrored, at two scales: every field at once and alone."""
    image = pixels(*SIZE, 3).astype(np.float32)
    twice = [0, 2, 4, 6, 8, 10, 12, 14, 16, 17], [*range(0, 23, 2), 23]
    starts = {1: STARTS[(5,), 0.4], 2: twice}

    def windowed(x, scale, window):
        if not window:
            return place(x, BIASES)
        return averaged(x, starts[scale], (5, 5), BIASES)

    def expected(window=(), scales=(1,), flip=False):
        total = np.zeros((*SIZE, 3))
        for scale in scales:
            x = cv2.resize(image, (scale * SIZE[1], scale * SIZE[0]))
            found = windowed(x, scale, window)
            if flip:
                found = (found + windowed(x[:, ::-1], scale, window)[:, ::-1]) / 2
            total += cv2.resize(found, SIZE[::-1])
        return total / len(scales)

    results = []
    for fields in (
        {},
        {"flip": True},
        {"scales": (1, 2)},
        {"scales": (2,)},
        {"window": (5,), "flip": True, "scales": (1, 2)},
    ):
        choice = PredictOptions(stride=0.4, **fields)
        run = jax.jit(inference.compose((Place(), Place()), choice))
        found = np.asarray(run(VARIABLES, image[None]))
        np.testing.assert_allclose(found[0], expected(**fields), atol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
        assert all(np.abs(found - other).max() > 1e-3 for other in results)
        results.append(found)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_ensemble_is_a_mean_that_sums_to_1(count):
    image = pixels(1, 6, 7, 3)
    biases = [*BIASES, (1.0, 1.0, -1.0)][:count]
    variables = [{"params": {"bias": np.float32(bias)}} for bias in biases]
    parts = [inference.whole(Place())] * count
    found = inference.ensemble(parts)(variables, image)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], place(image[0], biases), atol=1e-6)
    labels = predictors.most_probable(found)
    np.testing.assert_array_equal(labels[0], place(image[0], biases).argmax(-1))


# Trained models


def save_checkpoint(folder, step, variables):
    state = training.TrainState(
        jnp.array(step), **variables, opt_state={"m": jnp.ones(1)}
    )
    manager = checkpoint.open_folder(folder, 9)
    checkpoint.save(manager, state, {})
    checkpoint.finish(manager)
    manager.close()


def with_bias(variables, values):
    """The variables with another bias of the last layer."""
    flat = jax.tree_util.tree_flatten_with_path(variables)[0]
    (head,) = [p for p, leaf in flat if "bias" in str(p[-1]) and leaf.shape == (3,)]

    def leaf(path, old):
        return jnp.float32(values) if path == head else old

    return jax.tree_util.tree_map_with_path(leaf, variables)


SAME = {"padding": "same", "widths": (2, 4)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints of steps 7 and 9, the best of step 3; heads favour classes 0, 1, 2.

    Read only: the workdir, its config, the model and {step: variables}.
    """
    folder = tmp_path_factory.mktemp("run") / "run"
    config, model, first = make_run(folder, "unet", SAME, eval_batch_size=8)
    known = {
        step: with_bias(first, 100 * np.eye(3)[favoured])
        for step, favoured in ((9, 1), (3, 2))
    } | {7: first}
    save_checkpoint(folder / "checkpoints", 9, known[9])
    save_checkpoint(folder / "best", 3, known[3])
    return folder, config, model, known


def one_device():
    return sharding.make_mesh(jax.local_devices()[:1])


def steps_of(path, *others, **options):
    return inference.load(path, *others, mesh=one_device(), **options)


def test_the_checkpoint_that_was_asked_for(run, tmp_path, caplog):
    folder, _, model, known = run
    image = pixels(8, 8, 3)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
    best = steps_of(folder)
    for loaded, step in (
        (best, 3),
        (steps_of(folder, checkpoint="best"), 3),
        (steps_of(folder, checkpoint="latest"), 9),
        (steps_of(folder, checkpoint="7"), 7),
        (steps_of(folder, checkpoint="3"), 3),
        (steps_of(folder / "checkpoints" / "7"), 7),
        (steps_of(folder / "best" / "3"), 3),
    ):
        assert loaded.steps == (step,)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables[0], known[step])
    assert (best.predict([image])[0] == 2).all()
    assert (np.asarray(apply(known[9], image[None])).argmax(-1) == 1).all()
    with pytest.raises(UserError, match="no checkpoint of step 8"):
        steps_of(folder, checkpoint="8")
    with pytest.raises(UserError, match="expected 'best', 'latest' or a step"):
        steps_of(folder, checkpoint="newest")
    # A run without a best one yet.
    make_run(tmp_path / "young", "unet", SAME)
    (tmp_path / "young" / "best").mkdir()
    assert steps_of(tmp_path / "young").steps == (7,)
    assert "no best checkpoint" in caplog.text
    # Weights of every leaf count in the fingerprint.
    marks = {trained.fingerprint(variables) for variables in known.values()}
    assert len(marks) == 3
    again = trained.fingerprint(best.variables[0])
    assert again == trained.fingerprint(known[3])


def test_programs_of_an_ensemble_give_the_mean_of_softmaxes(run):
    folder, _, model, known = run
    latest, best = folder / "checkpoints" / "7", folder / "best" / "3"
    image = pixels(1, 8, 12, 3)
    both = steps_of(latest, best)
    assert both.steps == (7, 3)
    program = both.executable((1, 8, 12), outputs=("labels", "probabilities", "scores"))
    found = {name: np.asarray(x) for name, x in program(image).items()}
    apply = jax.jit(lambda v: model.apply(v, image, train=False)[0])
    expected = np.mean([softmax(np.asarray(apply(known[s]))) for s in (7, 3)], axis=0)
    assert found["scores"].dtype == np.float32
    assert found["probabilities"].dtype == np.float16
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    np.testing.assert_allclose(found["scores"].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-3)
    np.testing.assert_array_equal(found["labels"], found["scores"].argmax(-1))


def test_tile_and_batch_of_the_saved_config_are_read(run, tmp_path):
    """No config is given to load: the workdir's own counts."""
    folder = tmp_path / "tiles"
    valid = {"padding": "valid", "widths": (2, 3)}
    config, *_ = make_run(folder, "unet", valid, tile=36, eval_batch_size=2)
    loaded = inference.load(folder)
    assert loaded.options == PredictOptions(tile=36) and loaded.batch_size == 2
    plain = inference.load(folder, options=PredictOptions(flip=True))
    assert plain.options == PredictOptions(flip=True)
    assert inference.load(run[0]).options == PredictOptions()
    assert inference.load(run[0]).batch_size == 8
    values = config_lib.json_like(config) | {"tile": 35}
    with pytest.raises(UserError, match="35"):
        inference.load(folder, config=config_lib.make(**values))
    # Evaluation during and after training, too: tiles see other places than the whole.
    image = pixels(1, 10, 14, 3)
    found = {}
    for tile in (0, 9):
        run_of = evaluation.make_predictor(config_lib.make(tile=tile), Place(2))
        found[tile] = np.asarray(jax.jit(run_of)(VARIABLES[0], image))
        by_hand = inference.compose((Place(2),), PredictOptions(tile=tile))
        expected = jax.jit(by_hand)(VARIABLES[:1], image)
        np.testing.assert_allclose(found[tile], expected, atol=1e-6)
    assert np.abs(found[0] - found[9]).max() > 0.1


def test_a_cpu_computes_several_batches_at_once(run, monkeypatch):
    """In their order, with the same results, and of few pixels each."""
    monkeypatch.setattr(collection.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(collection, "CPU_BATCH_PIXELS", 200)
    images = [pixels(16, 8, 3, seed=seed) for seed in range(5)]
    one = inference.load(run[0], checkpoint="7", mesh=one_device())
    plan = collection.plan(one, images)
    assert [group.batch_size for group in plan.groups] == [1]
    meeting = threading.Barrier(2, timeout=60)
    key = (1, 16, 8), ("labels",)
    compiled = one.executable(*key[:1])

    def together(batch):
        if len(seen) < 4:  # five batches: the last one is alone
            seen.append(batch)
            meeting.wait()
        return compiled(batch)

    seen = []
    one.executables[key] = together
    found = list(collection.run(one, plan))
    assert [result.image_index for result in found] == list(range(5))
    four = inference.load(run[0], checkpoint="7")
    (group,) = collection.plan(four, images).groups
    assert group.batch_size == 8
    for result, label in zip(found, four.predict(images)):
        np.testing.assert_array_equal(result.label, label)


def test_windows_of_a_program_stay_within_the_limit(run):
    sides = (10, 10), (10, 10)
    layout = large.Layout((19, 15), *sides, [0, 5, 9], [0, 5], (0, 0), 0)
    one = steps_of(run[0])  # eval_batch_size 8
    assert one.window_batch(layout) == 6
    assert one.window_batch(layout, 450) == 4
    assert one.window_batch(layout, 1) == 1
    four = inference.load(run[0])
    assert four.mesh.size == 4
    assert four.window_batch(layout) == 8
    assert four.window_batch(layout, 150) == 4


# The CRF


def test_every_field_of_the_crf_reaches_refine():
    """Against the stage of ops with the same settings."""
    mesh = one_device()
    image = 100 + pixels(1, 8, 9, 1) // 8
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (1, 8, 9))
    arrays = jax.device_put(
        (probabilities.astype(np.float32), image), sharding.split(mesh)
    )
    # No field has its default: none can be left out without being noticed.
    base = mean_field.Settings(
        2, 2.0, 1.5, 3.0, 4.0, 9.0, "after", "lattice", 0.7, "bgr"
    )
    weights = (
        "smoothness_weight",
        "smoothness_sigma",
        "appearance_weight",
        "appearance_sigma_xy",
        "appearance_sigma_rgb",
    )

    @jax.jit
    def directly(values):
        settings = base._replace(**values)
        return mean_field.dense_crf(*arrays, settings=settings)

    plain = {name: getattr(base, name) for name in weights}
    results = [np.asarray(inference.refine(*arrays, settings=base, mesh=mesh))]
    np.testing.assert_allclose(results[0], directly(plain), atol=1e-5)
    for name in weights:
        changed = base._replace(**{name: 1.7 * getattr(base, name)})
        found = np.asarray(inference.refine(*arrays, settings=changed, mesh=mesh))
        expected = directly(plain | {name: getattr(changed, name)})
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
        results.append(found)
    for i, found in enumerate(results):
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
        for other in results[:i]:
            assert np.abs(found - other).max() > 1e-4


def test_the_color_order_reaches_refine():
    """Blue, green, red of an image are red, green, blue of its colors reversed."""
    mesh = one_device()
    image = pixels(1, 8, 9, 3)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (1, 8, 9))

    def refined(image, color_order):
        settings = mean_field.Settings(
            2, 2.0, 1.5, 3.0, 4.0, 30.0, color_order=color_order
        )
        arrays = probabilities.astype(np.float32), np.ascontiguousarray(image)
        arrays = jax.device_put(arrays, sharding.split(mesh))
        return np.asarray(inference.refine(*arrays, settings=settings, mesh=mesh))

    found = refined(image, "bgr")
    np.testing.assert_allclose(found, refined(image[..., ::-1], "rgb"), atol=1e-6)
    assert np.abs(found - refined(image, "rgb")).max() > 1e-4


# Files, decoded by Pillow


def blocks():
    """Label map of 16-pixel blocks, void among them."""
    return (
        np.array([[0, 1, 2, 255], [2, 0, 1, 1]], np.uint8).repeat(16, 0).repeat(16, 1)
    )


CENTRES = np.s_[8::16, 8::16]


def written_info():
    names = ("red", "green", "blue")
    return datasets.Dataset("blocks", names, PALETTE, (0.0,) * 3, 3)


def test_written_predictions_are_red_first_and_hold_what_they_should(tmp_path):
    label = blocks()
    image = np.full((*label.shape, 3), (40, 120, 230), np.uint8)
    label[label == 255] = 0
    outputs = ("labels", "ids", "overlays", "probabilities")
    results = prediction_folder.open_folder(
        tmp_path, outputs, info=written_info(), settings={"a": 1}
    )
    scores = np.float16(np.random.default_rng(0).dirichlet(np.ones(3), label.shape))
    (tmp_path / "x.png").write_bytes(b"x")
    version = file_version(str(tmp_path / "x.png"))
    assert version[0] == 1
    prediction = collection.Prediction(
        image_index=0,
        size=label.shape,
        label=label,
        probabilities=scores,
        parts=None,
        read=windows.array_windows(image, 3),
        version=version,
        waited=0.0,
    )
    prediction_folder.write(
        results, "x", file=str(tmp_path / "x.png"), prediction=prediction
    )

    with Image.open(tmp_path / "labels" / "x.png") as file:
        np.testing.assert_array_equal(np.asarray(file), label)
        np.testing.assert_array_equal(np.asarray(file.convert("RGB")), PALETTE[label])
    with Image.open(tmp_path / "ids" / "x.png") as file:
        assert file.mode == "L"
        np.testing.assert_array_equal(np.asarray(file), label)
    with Image.open(tmp_path / "overlays" / "x.jpg") as file:
        shown = np.asarray(file)[CENTRES].astype(float)
    # Half the image, half the color.
    expected = (image[CENTRES].astype(float) + PALETTE[label][CENTRES]) / 2
    assert np.abs(shown - expected).max() < 8
    with np.load(tmp_path / "probabilities" / "x.npz") as file:
        np.testing.assert_array_equal(file["probabilities"], scores)
    (line,) = (tmp_path / "done_0.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["pixels"] == [(label == k).sum() for k in range(3)]
    assert record["size"] == [32, 64] and record["version"] == list(version)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"a": 1}
    assert prediction_folder.is_done(results, "x", str(tmp_path / "x.png"))
    (tmp_path / "x.png").write_bytes(b"xx")
    assert not prediction_folder.is_done(results, "x", str(tmp_path / "x.png"))


def read_events(folder):
    """The events of TensorBoard files: records of length, CRC, data, CRC."""
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def columns_of(picture, width):
    """Image, truth and prediction of a panel, without captions and gaps."""
    zoom = -(-160 // width)
    head = picture.shape[0] - 32 * zoom
    gap = (picture.shape[1] - 3 * zoom * width) // 2
    parts = [(zoom * width + gap) * i for i in range(3)]
    return [picture[head:, at : at + zoom * width][::zoom, ::zoom] for at in parts]


def test_pictures_of_training_are_red_first(tmp_path):
    """The file, and the image in TensorBoard; the scores beside them."""
    truth = blocks()
    guess = truth[::-1].copy()
    image = np.full((*truth.shape, 3), (40, 120, 230), np.uint8)
    config = config_lib.make(total_steps=10)
    log = training_log.TrainingLog(config, tmp_path, start=0, evaluated=False)
    scores = {
        "pixel_accuracy": 0.9,
        "mean_accuracy": 0.7,
        "miou": 0.5,
        "fwiou": 0.3,
        "iou": [0.1],
    }
    shown = [{"image": image, "label": truth, "prediction": guess}]
    log.evaluation(4, scores, examples=shown, info=written_info())
    log.close()
    with Image.open(tmp_path / "pictures" / "00000004_0.png") as file:
        picture = np.asarray(file)
    colors = [
        np.where((x == 255)[..., None], 0, PALETTE[x % 255]) for x in (truth, guess)
    ]
    for part, expected in zip(columns_of(picture, 64), [image, *colors], strict=True):
        np.testing.assert_array_equal(part, expected)
    events = [e for e in read_events(tmp_path / "tensorboard") if e.HasField("summary")]
    found = {value.tag: (e.step, value) for e in events for value in e.summary.value}
    step, value = found["validation/0"]
    data = np.frombuffer(value.image.encoded_image_string, np.uint8)
    board = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    assert step == 4
    np.testing.assert_array_equal(board, picture)
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row == {"step": 4} | {
        f"val_{name}": scores[name] for name in list(scores)[:4]
    }
    assert found["val_miou"][1].simple_value == 0.5


def make_folder(root, count=2):
    """Images of 32 x 40 with masks of three classes and void; all for validation."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    made = {}
    for i in range(count + 1):
        image = pixels(32, 40, 3, seed=i)
        mask = pixels(32, 40, seed=10 + i) % 3
        mask[:4] = 255
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        made[str(i)] = image, mask
    (root / "val.txt").write_text("".join(f"{i}\n" for i in range(count)))
    (root / "classes.txt").write_text(
        "".join(
            f"{name} {r} {g} {b}\n"
            for name, (r, g, b) in zip(("class0", "class1", "class2"), PALETTE)
        )
    )
    return made


def test_pictures_and_confusion_of_an_evaluation(run, tmp_path):
    folder, config, model, known = run
    made = make_folder(tmp_path / "data")
    values = config_lib.json_like(config)
    data = values["data"] | {"name": "folder", "root": str(tmp_path / "data")}
    config = config_lib.make(
        **values | {"data": data, "eval_batch_size": 4, "eval_images": 1}
    )
    results = evaluate.evaluate(config, folder, checkpoint="7", output=tmp_path / "out")
    assert results["step"] == 7 and results["images"] == 2
    apply = jax.jit(lambda x: model.apply(known[7], x, train=False)[0])
    images, masks = (np.stack([made[i][k] for i in "01"]) for k in range(2))
    guesses = np.asarray(apply(images)).argmax(-1)
    known_ = masks != 255
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (masks[known_], guesses[known_]), 1)
    assert np.abs(np.array(results["confusion"]) - confusion).sum() <= 4  # near ties
    assert np.sum(results["confusion"]) == known_.sum()
    assert json.loads((tmp_path / "out" / "validation.json").read_text()) == json.loads(
        json.dumps(results)
    )
    with Image.open(tmp_path / "out" / "validation_0.png") as file:
        image, truth, guess = columns_of(np.asarray(file), 40)
    np.testing.assert_array_equal(image, images[0])
    colors = np.where(known_[0][..., None], PALETTE[masks[0] % 255], 0)
    np.testing.assert_array_equal(truth, colors)
    assert (guess != PALETTE[guesses[0]]).any(-1).mean() < 0.01
    assert not (tmp_path / "out" / "validation_1.png").exists()
    # Another checkpoint, another split, and the other images.
    best = evaluate.evaluate(config, folder, split="train", output=tmp_path / "out")
    assert best["step"] == 3 and best["images"] == 1
    assert np.sum(best["confusion"], axis=0).tolist() == [0, 0, 28 * 40]


def test_figures_and_legends_take_the_palette_as_it_is():
    legend = viz.legend(("a", "b", "c"), PALETTE, columns=1)
    for row, color in enumerate(PALETTE):
        assert (legend[22 * row : 22 * (row + 1)] == color).all(-1).sum() == 12 * 12
    # Overlays are half and half unless something else is asked for.
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = viz.overlay(image, np.array([[0, 1, 2]], np.uint8), palette=PALETTE)
    assert np.abs(mixed[0] - (100 + PALETTE.astype(float)) / 2).max() <= 0.5


# Programs: flags and exit codes


class Flags(types.SimpleNamespace):
    """Stands for the parsed flags."""

    def __getitem__(self, name):
        return types.SimpleNamespace(value=getattr(self, name))


def method_values(**changed):
    parsed = {"tile": -1, "window": [], "scales": ["1"]}
    return PredictOptions()._asdict() | parsed | changed


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({}, {"tile": 36}),
        ({"tile": 0}, {}),
        ({"tile": 20}, {"tile": 20}),
        ({"window": ["9"]}, {"window": (9,)}),
        ({"window": ["9", "7"]}, {"window": (9, 7)}),
        ({"window": ["9"], "tile": 20}, {"window": (9,), "tile": 20}),
        ({"stride": 0.5, "tile": 0}, {"stride": 0.5}),
        ({"scales": ["0.5", "2"], "tile": 0}, {"scales": (0.5, 2.0)}),
        ({"flip": True, "tile": 0}, {"flip": True}),
    ],
)
def test_flags_of_the_method(monkeypatch, changed, expected):
    config = config_lib.make(tile=36)
    monkeypatch.setattr(predict_flags.flags, "FLAGS", Flags(**method_values(**changed)))
    assert predict_flags.options(config) == PredictOptions(**expected)


def recorded(monkeypatch, module, name, result):
    """Replaces a function of a module; returns the arguments it is called with."""
    signature = inspect.signature(getattr(module, name))
    calls = {}

    def call(*args, **kwargs):
        calls.update(signature.bind(*args, **kwargs).arguments)
        return result

    monkeypatch.setattr(module, name, call)
    return calls


def flags_of_predict(run, tmp_path, **changed):
    return Flags(
        **method_values()
        | {
            "config": run[1],
            "workdir": str(run[0]),
            "output": str(tmp_path / "out"),
            "checkpoint": "best",
            "crf": "",
            "outputs": ["labels", "overlays"],
            "ensemble": [],
            "padding": 0.25,
            "max_pixels": 2**22,
            "split": "",
            "submission": "",
            "overwrite": False,
        }
        | changed
    )


def test_every_flag_of_predict_reaches_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(predict.cli, "start", lambda: None)
    summary = {
        "failures": {},
        "skipped": [],
        "compiled": {"programs": 1, "after_warm_up": 0},
        "megapixels_per_second": 1.0,
        "images_per_second": 1.0,
        "written": 1,
        "already_done": 0,
    }
    changed = {
        "checkpoint": "latest",
        "crf": "pydensecrf",
        "outputs": ["ids"],
        "ensemble": ["other"],
        "padding": 0.5,
        "max_pixels": 999,
        "overwrite": True,
        "submission": "voc2012",
        "flip": True,
    }
    values = flags_of_predict(run, tmp_path, **changed)
    monkeypatch.setattr(predict.flags, "FLAGS", values)
    calls = recorded(monkeypatch, predict, "predict", summary)
    assert predict.main(["predict", "a.png", "b.png"]) == 0
    assert calls == {
        "config": run[1],
        "workdir": run[0],
        "paths": ["a.png", "b.png"],
        "output": tmp_path / "out",
        "checkpoint": "latest",
        "crf": "pydensecrf",
        "outputs": ["ids"],
        "ensemble": ["other"],
        "options": PredictOptions(flip=True),
        "padding": 0.5,
        "max_pixels": 999,
        "overwrite": True,
        "submission": "voc2012",
        "split": "",
    }
    with pytest.raises(UserError, match="no images given"):
        predict.main(["predict"])
    values.split = "test"
    assert predict.main(["predict"]) == 0
    assert (calls["paths"], calls["split"]) == ([], "test")
    with pytest.raises(UserError, match="a.png and --split=test are both given"):
        predict.main(["predict", "a.png"])


def test_exit_code_of_predict(run, tmp_path, monkeypatch, capsys):
    """0 if all images are segmented, 1 if one cannot be read or is skipped."""
    monkeypatch.setattr(predict.cli, "start", lambda: None)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(pixels(8, 8, 3)).save(good)
    bad.write_bytes(b"no image")
    values = flags_of_predict(run, tmp_path, checkpoint="latest")
    monkeypatch.setattr(predict.flags, "FLAGS", values)
    assert predict.main(["predict", str(good), str(bad)]) == 1
    printed = capsys.readouterr()
    assert f"failed: {bad}: " in printed.err
    assert "1 images segmented, 0 there already, 1 failed" in printed.out
    assert predict.main(["predict", str(good)]) == 0
    assert "0 images segmented, 1 there already, 0 failed" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "labels" / "good.png") as file:
        assert (np.asarray(file) == 1).all()  # of step 9
        assert tuple(np.asarray(file.convert("RGB"))[0, 0]) == (128, 0, 0)
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / "good.jpg"))
    red, _, blue = (overlay - pixels(8, 8, 3) / 2.0).mean((0, 1))
    assert red > 45 and blue < 20
    # Pictures of a format that is not read count, other files do not.
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(pixels(8, 8, 3)).save(folder / "other.png")
    (folder / "notes.txt").write_text("no picture")
    assert predict.main(["predict", str(folder)]) == 0
    (folder / "phone.heic").write_bytes(b"not read")
    assert predict.main(["predict", str(folder)]) == 1
    # Another checkpoint into the same folder would mix two models.
    values = flags_of_predict(run, tmp_path, checkpoint="7")
    monkeypatch.setattr(predict.flags, "FLAGS", values)
    with pytest.raises(UserError, match="holds predictions with checkpoints"):
        predict.main(["predict", str(good)])


def test_every_flag_of_export_reaches_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.cli, "start", lambda: None)
    Image.fromarray(pixels(9, 7, 3)).save(tmp_path / "a.png")
    row = {"file": "p", "bytes": 1, "batch": 0, "platforms": ["cpu"]}
    check = {"pixels": 1, "different_labels": 0, "max_difference": 0.0}
    calls = recorded(monkeypatch, export, "export", {"programs": [row], "check": check})
    values = Flags(
        **method_values(scales=["1", "2"]),
        config=run[1],
        workdir=str(run[0]),
        output=str(tmp_path / "out"),
        checkpoint="latest",
        sizes=["20x24"],
        ensemble=["other"],
        padding=0.25,
        platforms=["cpu"],
        formats=["stablehlo"],
    )
    monkeypatch.setattr(export.flags, "FLAGS", values)
    assert export.main(["export", str(tmp_path / "a.png")]) == 0
    assert calls == {
        "config": run[1],
        "workdir": run[0],
        "output": tmp_path / "out",
        "sizes": [(20, 24), (9, 7)],
        "checkpoint": "latest",
        "ensemble": ["other"],
        "options": PredictOptions(scales=(1.0, 2.0)),
        "platforms": ["cpu"],
        "formats": ["stablehlo"],
    }
    assert "p  1 bytes, batch free, cpu" in capsys.readouterr().out


def test_an_exported_ensemble_with_its_method(run, tmp_path):
    """Against the networks applied to the image and its mirror, by hand."""
    folder, config, model, known = run
    facts = export.export(
        config,
        folder,
        output=tmp_path,
        sizes=[(8, 12)],
        checkpoint="7",
        ensemble=[str(folder / "checkpoints" / "9")],
        options=PredictOptions(flip=True),
        platforms=["cpu"],
    )
    assert tuple(facts["checkpoint_steps"]) == (7, 9)
    written = json.loads((tmp_path / "metadata.json").read_text())
    assert written["options"]["flip"] is True and written["options"]["tile"] == 0
    assert written["programs"][0]["platforms"] == ["cpu"]
    palette = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]  # of PASCAL VOC
    assert written["palette"] == palette and written["channels"] == 3
    assert written["classes"] == ["class0", "class1", "class2"]
    assert written["versions"]["jax"] == jax.__version__
    image = pixels(8, 12, 3, seed=5)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
    both = np.stack([image, image[:, ::-1]])
    means = []
    for step in (7, 9):
        straight, mirrored = softmax(np.asarray(apply(known[step], both)))
        means.append((straight + mirrored[:, ::-1]) / 2)
    expected = np.mean(means, axis=0)
    load = exported_loader.load(tmp_path)
    (scores,) = load([image], probabilities=True)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(load([image])[0], scores.argmax(-1))
