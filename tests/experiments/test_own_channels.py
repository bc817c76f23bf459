"""Training on own images of five channels, of which a range of values counts."""

import signal

import numpy as np
import pytest
import tifffile
from image_folders import lists, write

from experiments import predict, train
from segjax import config as config_lib
from segjax import inference
from segjax import workdir as workdir_lib
from segjax.data import datasets, images
from segjax.errors import UserError

SIZE, CHANNELS, RANGE = (16, 16), 5, (500, 3000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The config and the workdir of a run of two steps."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for i in range(4):
        path = root / "images" / f"{i}.tif"
        path.parent.mkdir(exist_ok=True)
        values = rng.integers(0, 4096, (*SIZE, CHANNELS)).astype(np.uint16)
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
        write(root / "masks" / f"{i}.png", rng.integers(0, 2, SIZE).astype(np.uint8))
    lists(root, "0\n1\n2\n", "3\n")
    config = config_lib.make(
        model_name="unet",
        model={"widths": (2,), "padding": "same"},
        data={
            "name": "folder",
            "root": str(root),
            "channels": CHANNELS,
            "value_range": RANGE,
        },
        augment={"rotate": 5.0, "elastic_sigma": 1.0},
        batch_size=4,
        eval_batch_size=4,
        total_steps=2,
        eval_every=0,
        save_every=2,
    )
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    assert train.train(config, root / "run") == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return config, root


def test_the_run_says_how_images_are_read(trained):
    _, root = trained
    info = workdir_lib.read_dataset(root / "run")
    assert info.channels == CHANNELS and info.mean == (127.5,) * CHANNELS
    segmenter = inference.load(root / "run")
    assert segmenter.value_range == RANGE
    kernel = segmenter.variables[0]["params"]["enc0_conv1"]["kernel"]
    assert kernel.shape[2] == CHANNELS
    picture = next((root / "run" / "pictures").iterdir())
    assert images.decode_image(picture).shape[2] == 3


def test_files_are_predicted_as_the_split_is(trained, tmp_path):
    config, root = trained
    source, _ = datasets.load(config.data, "validation")
    segmenter = inference.load(root / "run")._replace(value_range=(0, 0))
    (expected,) = segmenter.predict([source[0]["image"]])
    options = {"outputs": ("ids",)}
    file = [str(root / "images" / "3.tif")]
    one, other = tmp_path / "files", tmp_path / "split"
    predict.predict(config, root / "run", paths=file, output=one, **options)
    predict.predict(
        config, root / "run", paths=[], split="validation", output=other, **options
    )
    for folder in (one, other):
        found = images.decode_mask(folder / "ids" / "3.png")[0]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("value_range", (0, 3000), "data.value_range=.500, 3000."),
        ("channels", 3, "neither color nor alpha|expected 3"),
    ],
)
def test_a_run_continues_with_the_same_images_only(trained, field, value, message):
    config, root = trained
    other = config.copy_and_resolve_references()
    other.data[field] = value
    with pytest.raises(UserError, match=message):
        train.train(other, root / "run")
