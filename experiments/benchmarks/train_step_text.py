"""The results of experiments.benchmarks.train_step as text."""

from ml_collections import ConfigDict

from segjax import tables


def table(results: dict) -> str:
    """The results as aligned text."""
    step, transfer = results["step"], results["transfer"]
    rows = []
    if "first_step" in results:
        for name, run in results["first_step"].items():
            parts = ", ".join(f"{key} {s:.1f}" for key, s in run["parts"].items())
            rows.append((f"first step, {name}", f"{run['seconds']:.1f} s", parts))
    for name in ("synthetic", "real"):
        spread = step[name]["step_seconds"]
        rows += [
            (
                f"step, {name} input",
                _ms(spread["median"]),
                f"{_ms(spread['min'])} to {_ms(spread['max'])}",
            ),
            (
                f"training, {name} input",
                _rate(step[name]["images_per_second"]),
                f"{step['real_over_synthetic']:.3f} of synthetic"
                if name == "real"
                else "",
            ),
        ]
    feed, core = results["input"], results["input"]["one_core"]
    rows += [
        ("device waits for input", f"{step['input_wait']:.1%}", "of the real step"),
        (
            "pipeline alone",
            _rate(feed["images_per_second"]),
            f"{feed['batches_per_second']:.1f} batches/s, {feed['threads']} threads, "
            f"{feed['workers']} workers",
        ),
        (
            "pipeline on one core",
            _rate(core["images_per_second"]),
            f"{core['cores_needed']:.2f} cores would feed the step",
        ),
        ("  read and decode", _ms(core["read_seconds"]), "per image"),
        (
            "  augment",
            _ms(core["augment_seconds"]),
            f"per image, {_rate(core['augmented_images_per_second'])}",
        ),
    ]
    for name, row in transfer.items():
        shape = "x".join(map(str, row["shape"]))
        value = f"{row['bytes_per_image']:,.0f} bytes"
        rows.append((f"to the device, {name}", value, f"{row['dtype']} {shape}"))
    if forward := results.get("forward"):
        size = "x".join(map(str, forward["image"]))
        how = f"in tiles of {forward['tile']}" if forward["tile"] else "whole"
        value = _rate(forward["images_per_second"])
        rows.append(("forward", value, f"{size} images, {how}"))
    count = results["compilations"]
    rows += [
        ("compiled up to the first step", str(count["first_step"]), "programs"),
        ("compiled after it", str(count["after_first_step"]), "programs"),
    ]
    return tables.text_table(rows, titles=False)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{1 if seconds > 0.01 else 3}f} ms"


def _rate(images: float) -> str:
    return f"{images:,.1f} images/s"


def header(config: ConfigDict, where: dict, *, steps: int, rounds: int) -> str:
    """What was measured on what, in two lines."""
    versions = ", ".join(f"{key} {where[key]}" for key in ("python", "jax", "jaxlib"))
    return (
        f"{config.model_name} on {config.data.name}, batch {config.batch_size}, "
        f"{rounds} rounds of {steps} steps; {where['devices']}, {where['processes']} "
        f"processes, {where['host_cores']} host cores\n{versions}\n"
    )
