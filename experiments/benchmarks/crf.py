"""Measures the fully connected CRF on this machine: time, memory and how both grow.

    python -m experiments.benchmarks.crf
    python -m experiments.benchmarks.crf photo.jpg --growth --output /tmp/crf
    python -m experiments.benchmarks.crf photo.jpg --size=513,513 --batches=1,8,32

Per image of a batch, after compilation: --crf, what it costs in evaluate and predict.
Then the parts of the static form (ops/mean_field.py), which GPUs, TPUs, CRF-RNN and
jitted predictors use: sort (of the points, after which the vertices are counted to
choose the capacity), build (of the lattices) and filter (normalization and iterations),
which add up to the total.  Memory is what its compiled program allocates, inputs and
outputs included.  On a CPU, --crf has programs of its own (inference/crf_points.py).

The image is a procedural scene unless a file is given; it is resized to --size, and
batches are shifts of it.  The class probabilities are random: no time depends on them.
--growth also varies pixels, classes and the color sigma, on which the size of the
lattice depends; it takes some minutes.  --output gets crf.json and crf_growth.png.
"""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from experiments.shared import cli, predict_flags, provenance
from segjax import config as config_lib
from segjax import files, inference, sharding, tables, viz
from segjax.data import images as image_files
from segjax.data import scenes
from segjax.errors import UserError
from segjax.ops import filters, lattice, mean_field

PARTS = ("sort", "build", "filter", "total")
# For the growth: factors of the pixels, classes, factors of the sigma of the colors.
PIXELS = (0.25, 0.5, 1, 2, 4)
CLASSES = (2, 5, 11, 21, 41)
SIGMAS = (0.25, 0.5, 1, 2)


def measure(
    image: np.ndarray,
    classes: int,
    *,
    settings: mean_field.Settings,
    batch: int = 1,
    rounds: int = 5,
) -> dict:
    """Time and memory of one batch.

    Args:
      image: uint8 [H, W, C]; the batch is shifts of it.
      classes: K.
      settings: of the CRF.
      batch: images.
      rounds: the medians are given.

    Returns:
      ``refine_seconds`` per image of ``inference.refine``, ``first_refine_seconds``
      of the batch with its compilation; ``seconds`` per image by part of the static
      form, ``compile_seconds``, ``bytes`` of the program per
      batch, ``vertices`` and ``capacity`` of the two lattices, and the case itself.
    """
    height, width, _ = image.shape
    shifts = np.arange(batch) * (width // batch)
    images = jnp.stack([np.roll(image, shift, axis=1) for shift in shifts])
    coarse = jax.random.normal(
        jax.random.key(0), (batch, height // 16 + 2, width // 16 + 2, classes)
    )
    logits = jax.image.resize(4 * coarse, (batch, height, width, classes), "linear")
    probabilities = jax.nn.softmax(logits)

    began = time.perf_counter()
    sort = jax.jit(lambda images: sort_points(images, settings))
    sort = sort.lower(images).compile()
    points = sort(images)
    capacity = mean_field.choose_capacity(images, settings)
    build = jax.jit(
        lambda points: build_lattices(
            points, images, settings=settings, capacity=capacity
        )
    )
    build = build.lower(points).compile()

    def refine(probabilities, images, points):
        return mean_field.dense_crf(
            probabilities,
            images,
            settings=settings,
            capacity=capacity,
            appearance=points,
        )

    run = jax.jit(refine).lower(probabilities, images, points).compile()
    compiled = time.perf_counter() - began
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    arrays = jax.device_put((probabilities, images), sharding.split(mesh))
    refined = functools.partial(inference.refine, *arrays, settings=settings, mesh=mesh)
    first = _seconds(refined)
    calls = {
        "refine": refined,
        "sort": lambda: sort(images),
        "build": lambda: build(points),
        "crf": lambda: run(probabilities, images, points),
    }
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call) / batch)
    refining, sorting, building, crf = (
        statistics.median(times[name]) for name in calls
    )
    if not np.isfinite(np.asarray(run(probabilities, images, points))).all():
        raise AssertionError("the capacity was too small")
    lattices = build(points)
    memory = run.memory_analysis()
    return {
        "batch": batch,
        "size": [height, width],
        "classes": classes,
        "settings": settings._asdict(),
        "vertices": [int(table.vertex_count.max()) for table in lattices],
        "capacity": list(capacity),
        "refine_seconds": refining,
        "first_refine_seconds": first,
        "seconds": dict(zip(PARTS, (sorting, building, crf - building, sorting + crf))),
        "compile_seconds": compiled,
        "bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes,
    }


def sort_points(
    images: jax.Array, settings: mean_field.Settings
) -> lattice.Sorted | None:
    """The sorted lattice points of the appearance kernel, if there is one."""
    if not settings.appearance_weight:
        return None
    return lattice.sort(mean_field.appearance_features(images, settings))


def build_lattices(
    points: lattice.Sorted | None,
    images: jax.Array,
    *,
    settings: mean_field.Settings,
    capacity: tuple[int, int],
) -> list[lattice.Lattice]:
    """The lattices of a CRF, smoothness first."""
    _, height, width, _ = images.shape
    built = []
    if settings.smoothness_weight and settings.smoothness_filter == "lattice":
        features = filters.smoothness_features(height, width, settings.smoothness_sigma)
        features = jax.lax.optimization_barrier(jnp.asarray(features))
        built.append(lattice.build(features, capacity[0]))
    if points is not None:
        built.append(lattice.build(points, capacity[1]))
    return built


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def growth(
    image: np.ndarray, classes: int, *, settings: mean_field.Settings, rounds: int = 3
) -> dict[str, list[dict]]:
    """Measurements over pixels, classes and the size of the appearance lattice."""
    height, width, _ = image.shape

    def scaled(factor: float) -> np.ndarray:
        size = round(height * factor**0.5), round(width * factor**0.5)
        return image_files.resize_image(image, size)

    sigma = settings.appearance_sigma_rgb
    finer = [
        settings._replace(appearance_sigma_rgb=sigma * factor) for factor in SIGMAS
    ]
    cases = {
        "pixels": [(scaled(factor), classes, settings) for factor in PIXELS],
        "classes": [(image, number, settings) for number in CLASSES],
        "vertices": [(image, classes, changed) for changed in finer],
    }
    bar = tqdm.tqdm(total=sum(map(len, cases.values())), desc="growth", unit="case")
    measured: dict[str, list[dict]] = {}
    with bar:
        for name, rows in cases.items():
            measured[name] = []
            for case in rows:
                pixels, number, changed = case
                row = measure(pixels, number, settings=changed, rounds=rounds)
                measured[name].append(row)
                bar.update()
    return measured


def table(rows: list[dict]) -> str:
    """Measurements as aligned text."""
    head = (
        "size",
        "classes",
        "batch",
        "--crf ms",
        *(f"{part} ms" for part in PARTS),
        "MB",
    )
    lines = [(*head, "vertices", "compile s")]
    for row in rows:
        parts = [f"{1000 * row['seconds'][part]:.0f}" for part in PARTS]
        lines.append(
            (
                "x".join(map(str, row["size"])),
                str(row["classes"]),
                str(row["batch"]),
                f"{1000 * row['refine_seconds']:.0f}",
                *parts,
                f"{row['bytes'] / 1e6:.0f}",
                " + ".join(f"{count:,}" for count in row["vertices"]),
                f"{row['compile_seconds']:.1f}",
            )
        )
    return tables.text_table(lines)


def main(argv) -> None:
    values = flags.FLAGS
    size = tuple(_numbers("size", values.size))
    batches = _numbers("batches", values.batches)
    if len(size) != 2:
        raise UserError(f"--size={','.join(values.size)}: expected height,width")
    if len(argv) > 2:
        raise UserError("give one image, or none for a procedural scene")
    settings = predict_flags.crf_settings(config_lib.make(), values.crf)
    if settings is None:
        raise UserError(
            "--crf names the parameters to measure with, such as pydensecrf"
        )
    output = Path(values.output).expanduser() if values.output else None
    if output:
        cli.make_folder(output)
    if len(argv) == 2:
        (file,) = image_files.list_images(argv[1:]).images
        image = image_files.resize_image(image_files.decode_image(file, 3), size)
    else:
        image = scenes.scene(0, 0, size=size)["image"]
    cli.start()
    where = provenance.versions()
    results = {
        "versions": where,
        "batches": [
            measure(
                image,
                values.classes,
                settings=settings,
                batch=batch,
                rounds=values.rounds,
            )
            for batch in batches
        ],
    }
    print(f"per image; {where['devices']}, {where['host_cores']} host cores, ", end="")
    print(f"jax {where['jax']}; {settings}")
    print(table(results["batches"]))
    if values.growth:
        results["growth"] = growth(image, values.classes, settings=settings)
        for name, rows in results["growth"].items():
            print(f"\ngrowth with {name}\n{table(rows)}")
    if output:
        files.write_json(output / "crf.json", results)
        if values.growth:
            png = viz.growth_figure(growth_curves(results["growth"]))
            (output / "crf_growth.png").write_bytes(png)
        print(f"written to {output}")


def growth_curves(measured: dict[str, list[dict]]) -> dict[str, dict[str, list]]:
    """What ``viz.growth_figure`` draws of ``growth``."""
    along = {
        "pixels": lambda row: row["size"][0] * row["size"][1],
        "classes": lambda row: row["classes"],
        "vertices": lambda row: row["vertices"][-1],
    }
    curves = {}
    for name, rows in measured.items():
        rows = sorted(rows, key=along[name])
        curves[name] = {"x": [along[name](row) for row in rows]} | {
            part: [row["seconds"][part] for row in rows] for part in PARTS
        }
        curves[name]["bytes"] = [row["bytes"] for row in rows]
    return curves


def _numbers(name: str, texts: list[str]) -> list[int]:
    if not texts or not all(text.isdigit() and int(text) for text in texts):
        raise UserError(f"--{name}={','.join(texts)}: expected positive integers")
    return [int(text) for text in texts]


if __name__ == "__main__":
    flags.DEFINE_list("size", ["375", "500"], "Height and width of the image.")
    flags.DEFINE_integer("classes", 21, "Classes.", lower_bound=1)
    flags.DEFINE_list("batches", ["1", "8"], "Images per batch, one run for each.")
    flags.DEFINE_integer("rounds", 5, "Repetitions; medians are given.", lower_bound=1)
    flags.DEFINE_string("crf", "pydensecrf", "Parameters: a name or a FILE.json.")
    flags.DEFINE_bool("growth", False, "Also vary pixels, classes and lattice.")
    flags.DEFINE_string("output", "", "Folder for crf.json and crf_growth.png.")
    cli.run(main, positional=True)
