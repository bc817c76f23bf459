"""Exported programs: run without flax and segjax, and lowered for all platforms."""

import hashlib
import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo
from workdirs import make_run

from experiments import export
from experiments.shared import export_programs, exported_loader
from segjax import inference
from segjax.errors import UserError
from segjax.inference import resizing

ISOLATED = """
import importlib.metadata, sys, zipimport

jax_needs = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy"}
installed = {"segjax", *importlib.metadata.packages_distributions()}

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name == "flatbuffers":
            return zipimport.zipimporter(sys.path[-1]).find_spec(name)
        if name in installed - jax_needs:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbidden())
try:
    import segjax
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("segjax can be imported")
sys.path.insert(0, sys.argv[1])
import numpy as np
from load import load

images = list(np.load(sys.argv[1] + "/images.npz").values())
predict = load()
labels = predict(images)
scores = predict(images, probabilities=True)
np.savez(sys.argv[1] + "/labels.npz", *labels)
np.savez(sys.argv[1] + "/scores.npz", *scores)
assert not {"flax", "segjax"} & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    fields = {"padding": "same", "widths": (2, 3), "norm": "batch"}
    return folder, make_run(folder, "unet", fields, seed=2)[0]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported")
    facts = export.export(
        run[1],
        run[0],
        output=output,
        sizes=[(20, 24), (33, 16)],
        formats=["stablehlo"],
    )
    return output, facts


def test_loads_with_jax_and_numpy_alone(run, exported):
    output, _ = exported
    rng = np.random.default_rng(0)
    sizes = [(20, 24), (33, 16), (20, 24), (7, 9), (25, 13)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    np.savez(output / "images.npz", *images)
    done = subprocess.run(
        [sys.executable, "-c", ISOLATED, str(output)],
        env={"JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = inference.load(run[0])
    expected = model.predict(images[:3], padding=0)
    with np.load(output / "labels.npz") as labels, np.load(output / "scores.npz") as p:
        for size, label, scores in zip(sizes, labels.values(), p.values()):
            assert label.shape == size and label.dtype == np.uint8
            assert scores.shape == (*size, 3) and scores.dtype == np.float32
            np.testing.assert_array_equal(label, scores.argmax(-1))
            np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
        for label, other in zip(labels.values(), expected):
            assert (label == other).mean() > 0.999
        # Smaller images are mirrored to the smallest size that holds them.
        (mirrored,) = model.predict(
            [np.pad(images[3], [(0, 13), (0, 15), (0, 0)], "reflect")], padding=0
        )
        assert (labels["arr_3"] == mirrored[:7, :9]).mean() > 0.99


def test_programs_are_for_all_platforms_and_any_batch(exported):
    output, facts = exported
    written = json.loads((output / "metadata.json").read_text())
    assert written.keys() - facts.keys() == {"sha256", "checksum"}
    assert json.loads(json.dumps(facts)) == {key: written[key] for key in facts}
    assert facts["check"]["pixels"] > 2 * 20 * 24
    assert facts["check"]["different_labels"] <= 2
    for row in facts["programs"]:
        program = jax.export.deserialize(bytearray((output / row["file"]).read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu") and row["batch"] == 0
        text = program.mlir_module()
        assert "stablehlo.convolution" in text
        assert str(program.in_avals[-1].shape) == f"(batch, {row['height']}, " + (
            f"{row['width']}, 3)"
        )
        # Weights are arguments: programs stay small.
        assert row["bytes"] < 100_000
    assert facts["classes"] == ("class0", "class1", "class2")


def test_stablehlo_takes_the_arrays_that_the_metadata_list(exported):
    """Read by the MLIR of jaxlib, without what jax.export knows of the program."""
    output, _ = exported
    written = json.loads((output / "metadata.json").read_text())
    with np.load(output / "weights.npz") as file:
        arrays = dict(file)
    for row in written["programs"]:
        (name,) = row["other_files"]
        assert name == f"program_{row['height']}x{row['width']}.stablehlo"
        data = (output / name).read_bytes()
        assert written["sha256"][name] == hashlib.sha256(data).hexdigest()
        with ir.Context() as context:
            stablehlo.register_dialect(context)
            module = stablehlo.deserialize_portable_artifact(context, data)
            (main,) = (f for f in module.body if f.name.value == "main")
            platform, *types = main.type.inputs
            results = [result.rank for result in main.type.results]
            shapes = [type.shape for type in types]
            assert platform.rank == 0 and results == [3, 4]
        assert row["arguments"][-1] == "images" and set(row["arguments"][:-1]) == set(
            arrays
        )
        for argument, shape in zip(row["arguments"][:-1], shapes[:-1], strict=True):
            assert tuple(shape) == arrays[argument].shape, argument
        assert shapes[-1][1:] == [row["height"], row["width"], 3]


def test_loader_is_short_and_refuses_what_it_cannot_do(exported):
    with open(exported_loader.__file__) as file:
        assert len(file.readlines()) < 130
    predict = exported_loader.load(exported[0])
    with pytest.raises(ValueError, match=r"\(34, 16, 3\) is larger than all of"):
        predict([np.zeros((34, 16, 3), np.uint8)])
    for wrong in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3))):
        with pytest.raises(ValueError, match=r"expected uint8 or uint16 \[H, W, 3\]"):
            predict([wrong])


def test_a_wrong_export_is_found(run, exported, tmp_path):
    """The check at the end compares with the model, not with itself."""
    output, facts = exported
    for file in output.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with np.load(output / "weights.npz") as file:
        arrays = dict(file)
    bias = next(name for name in arrays if name.endswith("head/bias"))
    arrays[bias] = arrays[bias] + np.float32([0, 1, 0])
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(ValueError, match=r"weights.npz is damaged: export again"):
        exported_loader.load(tmp_path)
    export_programs.write_metadata(tmp_path, facts)
    with pytest.raises(UserError, match="differ by .* from the model's"):
        export.check(inference.load(run[0]), tmp_path)


def test_bad_requests(run, tmp_path):
    def fails(message, sizes, **options):
        with pytest.raises(UserError, match=message):
            export.export(run[1], run[0], output=tmp_path, sizes=sizes, **options)

    fails("no sizes: give --sizes", [])
    fails("--platforms: unknown 'gpu'", [(8, 8)], platforms=("gpu",))
    fails("--formats: unknown .*'stablehlo'", [(8, 8)], formats=("stable_hlo",))
    assert export.parse_sizes(["8x9"]) == [(8, 9)]
    with pytest.raises(UserError, match="--sizes: found '8', expected HEIGHTxWIDTH"):
        export.parse_sizes(["8"])


def test_options_become_part_of_the_programs(run, tmp_path):
    options = inference.PredictOptions(rotations=3, scales=(1.0, 0.5))
    export.export(
        *(run[1], run[0]),
        output=tmp_path,
        sizes=[(20, 24)],
        platforms=["cpu"],
        options=options,
    )
    image = np.random.default_rng(2).integers(0, 256, (20, 24, 3), np.uint8)
    (scores,) = exported_loader.load(tmp_path)([image], probabilities=True)
    model = inference.load(run[0])
    for chosen, different in ((options, False), (inference.PredictOptions(), True)):
        predictor = jax.jit(inference.compose(model.models, chosen))
        expected = np.asarray(predictor(model.variables, image[None])[0])
        assert (np.abs(scores - expected).max() > 1e-3) == different


def test_every_damaged_file_is_found(exported, tmp_path):
    """One bit of each file, and each fact of the metadata."""
    output, facts = exported
    for file in output.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    names = [row["file"] for row in facts["programs"]] + ["weights.npz"]
    for name in [*names, "flatbuffers.zip"]:
        data = bytearray((tmp_path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is damaged: export again"):
            exported_loader.load(tmp_path)
        (tmp_path / name).write_bytes((output / name).read_bytes())
    text = (output / "metadata.json").read_text()
    written = json.loads(text)
    for key in written.keys() - {"checksum"}:
        changed = written | {key: "something else"}
        (tmp_path / "metadata.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="metadata.json is damaged"):
            exported_loader.load(tmp_path)
    (tmp_path / "metadata.json").write_text(text)
    image = np.zeros((20, 24, 3), np.uint8)
    assert exported_loader.load(tmp_path)([image])[0].shape == (20, 24)


@pytest.mark.parametrize(
    "old, new",
    [
        ((20, 24), (10, 12)),
        ((20, 24), (20, 24)),
        ((30, 33), (10, 11)),
        ((37, 50), (13, 21)),
        ((9, 10), (23, 31)),
        ((40, 10), (17, 25)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_loader_resizes_as_opencv_does(old, new, channels):
    image = np.random.default_rng(0).integers(0, 256, (*old, channels), np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_AREA)
    resized = exported_loader.resize_area(image, new)
    assert resized.dtype == np.uint8
    difference = np.abs(np.int32(resized) - expected.reshape(*new, channels))
    # OpenCV enlarges in fixed point.
    enlarged = new[0] > old[0] or new[1] > old[1]
    assert difference.max() <= 1
    assert (difference > 0).mean() < (0.2 if enlarged else 0.02)
    scores = np.random.default_rng(1).random((*new, 5), np.float32)
    expected = cv2.resize(scores, old[::-1], interpolation=cv2.INTER_LINEAR)
    back = exported_loader.resize_bilinear(scores, old)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, expected, atol=1e-5)
    rows = np.concatenate(list(resizing.resized_rows(scores, old)))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, atol=1e-5)
