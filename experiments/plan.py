"""Compiles the training step of a config for a TPU slice, without having one.

    python -m experiments.plan --config configs/pspnet50_camvid.py --topology v5e:4x4
    python -m experiments.plan --config configs/fcn8s_camvid.py --topology v4:2x2x1 \\
        --config.batch_size=32 --largest_batch
    python -m experiments.plan --config configs/sweeps/rates.py --topology v5e:4x4 \\
        --config.batch_size=16 --sweep
    python -m experiments.plan --config configs/unet_camvid.py --topology gpu:8

The step is the one that experiments.train runs, with its shapes, shardings and donated
state, compiled by the TPU's own compiler (pip install 'jax[tpu]' brings it).  Reported
are: whether it fits into the memory of a chip; FLOPs and bytes of collectives per chip;
the compiler's estimate of cycles, what that makes of the chip's peak, and the costliest
layers; layers whose channels pad badly to the 128 lanes.  No data are read.

--largest_batch searches the largest batch that fits; each probe compiles again, which
takes minutes for a full-size network.  --sweep does all rows of the config's sweep().
For gpu:N nothing is compiled, unless this machine has N GPUs.  docs/plan.md shows some.

--weak_scaling FILE.png plots images/s from 4 to 256 chips and 4 slices from one plan.

Exit codes: 0 fits; 1 does not fit, or a row cannot compile; 2 bad input.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.launch import collectives, plan_text, scaling_plot, step_costs, tpus
from experiments.shared import arguments, cli, training_run
from experiments.sweeps import rows as sweep_rows
from segjax import config as config_lib
from segjax import files, models, sharding, training
from segjax.analysis import counts, tracing
from segjax.analysis.summary import Layer, summary
from segjax.errors import UserError
from segjax.models.network import abstract_variables
from segjax.weak import supervision

GIB = 2**30


class Network(NamedTuple):
    """A model, and what is known of it without compiling."""

    model: Any
    image: tuple[int, int, int]
    layers: tuple[Layer, ...]
    flops: int  # of a training step for one image: 3 x the forward pass
    state: training.TrainState  # shapes
    parameters: int


def target(topology: str, slices: int) -> step_costs.Target:
    """The target that --topology and --slices name.

    Raises:
      UserError: no such topology, or no compiler for it.
    """
    if match := re.fullmatch(r"gpu:([1-9]\d*)", topology):
        count = int(match[1]) * slices
        try:
            devices = jax.devices("gpu")
        except RuntimeError:  # there are none
            devices = []
        if len(devices) < count:
            return step_costs.Target(topology, count, None, 0, {})
        limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
        return step_costs.Target(topology, count, devices[:count], limit / GIB, {})
    if topology.startswith("gpu"):
        raise UserError(f"--topology={topology}: expected gpu:N, such as gpu:8")
    tpu_slice = tpus.parse(topology)
    # Where libtpu is installed, jax would look for TPUs of this machine, too.
    jax.config.update("jax_platforms", "cpu")
    devices = tpus.compile_only_devices(tpu_slice, slices)
    name = f"{slices} x {topology}" if slices > 1 else topology
    kind = tpu_slice.kind
    return step_costs.Target(
        name, len(devices), devices, kind["hbm"], kind, tpu_slice, slices
    )


def network(config: ConfigDict, chips: int) -> Network:
    """Checks a config, builds its model, and counts; compiles and reads nothing.

    Raises:
      UserError: the config is wrong or does not split over the chips.
    """
    config_lib.check(config)
    sharding.check_batch_size(
        config.batch_size,
        "batch_size",
        grad_accum_steps=config.grad_accum_steps,
        devices=chips,
    )
    classes, image = sweep_rows.example(config)
    model = models.build(config, classes)
    variables = abstract_variables(model, image[-1])
    # Of the paper's form: the share of the peak is comparable with others' then.
    traced = jax.make_jaxpr(tracing.train(tracing.plain_form(model)))(
        variables, tracing.image_struct(image), jax.random.key(0)
    )
    init = training_run.make_init(
        config, model, image_shape=image, mesh=sharding.make_mesh()
    )
    state = jax.eval_shape(init)
    return Network(
        model=model,
        image=image,
        layers=summary(model, image, activations=False).layers,
        flops=3 * 2 * counts.macs(traced.jaxpr),
        state=state,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    )


# Compiling


def compile_step(
    config: ConfigDict, net: Network, *, devices: Sequence[jax.Device], batch: int
) -> tuple[dict, Any]:
    """Compiles the training step for a global batch on ``devices``.

    Returns:
      ``fits``, ``needed_gib`` per chip, ``compile_seconds`` and, if it fits, the parts
      of the memory, otherwise ``available_gib``; and the compiled step, if it fits.
    """
    mesh = sharding.make_mesh(devices)
    init = training_run.make_init(config, net.model, image_shape=net.image, mesh=mesh)
    split = sharding.split(mesh)

    def struct(shape, dtype, where):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    state = training_run.abstract_state(config, init, image_shape=net.image, mesh=mesh)
    examples = {
        "image": struct((batch, *net.image), np.uint8, split),
        "label": struct((batch, *net.image[:2]), np.uint8, split),
    }
    if config.data.supervision in supervision.WEAK:
        examples["present"] = struct((batch, net.model.num_classes), np.uint8, split)
    # Some operations are written in other ways for other platforms.
    with jax.default_device(devices[0]):
        step = training_run.make_train_step(
            config, net.model, params=state.params, mesh=mesh
        )
        lowered = step.lower(state, examples)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = out_of_memory(str(error))
        numbers = {"fits": False, "needed_gib": needed, "available_gib": available}
        return numbers | {"compile_seconds": time.perf_counter() - began}, None
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    parts = {key: size / GIB for key, size in parts.items()}
    numbers = {"fits": True, "needed_gib": sum(parts.values()), "memory_gib": parts}
    return numbers | {"compile_seconds": seconds}, compiled


def out_of_memory(message: str) -> tuple[float, float]:
    """GiB needed and GiB available, read from the compiler's out-of-memory error.

    Raises:
      UserError: it refused for another reason.
    """
    amount = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"Used {amount} of {amount} hbm",
        rf"required for .*?\({amount}\) exceeds available HBM \({amount}\)",
    ):
        if match := re.search(pattern, message):
            units = dict(zip(("", *"KMGT"), (2.0**-30, 2.0**-20, 2.0**-10, 1, 2**10)))
            used, unit, limit, limit_unit = match.groups()
            return float(used) * units[unit], float(limit) * units[limit_unit]
    raise UserError(f"cannot compile: {' '.join(message.split())[:300]}")


def search_largest(
    needed: Callable[[int], tuple[bool, float]],
    start: int,
    *,
    base: float,
    available: float,
    probes: int = 6,
) -> tuple[int, int]:
    """The largest number per chip that fits, with few probes.

    Args:
      needed: of a number, whether it fits, and what it needs.
      start: the first to try.
      base: what 0 would need.
      available: what there is.
      probes: how many to try.

    Returns:
      The largest that is known to fit (0: none), the smallest known not to (0: none).
    """
    low, high, number, step = 0, 0, start, 1
    for i in range(probes):
        fits, used = needed(number)
        low = max(low, number) if fits else low
        high = high if fits else min(high or number, number)
        if high and high - low <= 1:
            break
        guess = math.floor(number * (available - base) / max(used - base, 1e-9))
        if high and i > 1:
            guess = (low + high) // 2
        elif guess <= low:  # memory is not linear: the compiler saves it in need
            step = max(step, low // 16) if used >= available else step
            guess, step = low + step, 4 * step
        number = min(max(guess, low + 1), high - 1 if high else 32 * number)
    return low, high


def _with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    """The config with another batch size, and as many groups of batch normalization.

    As many as divide the new batch, if they were smaller than the part of a chip.
    """
    config = config.copy_and_resolve_references()
    if config.bn_batch_size:
        groups = config.batch_size // config.bn_batch_size
        config.bn_batch_size = batch // math.gcd(groups, batch)
    config.batch_size = batch
    return config


def report(
    config: ConfigDict, net: Network, *, to: step_costs.Target, largest: bool = False
) -> dict:
    """Plans a config for a target; all numbers are per chip and step.

    Args:
      config: to plan for.
      net: ``network`` of it.
      to: what it trains on.
      largest: also searches the largest batch.

    Raises:
      UserError: the compiler refuses for another reason than memory.
    """
    batch, grad_accum_steps = config.batch_size, config.grad_accum_steps
    per_chip = batch // to.chips
    height, width, channels = net.image
    numbers: dict[str, Any] = {
        "target": to.name,
        "chips": to.chips,
        "network": config.model_name,
        "image": f"{height}x{width}x{channels}",
        "batch": batch,
        "batch_per_chip": per_chip,
        "parameters": net.parameters,
        "model_flops": net.flops * per_chip,
        "state_gib": step_costs.state_bytes(net.state, to, config.state_sharding) / GIB,
        "available_gib": to.available,
        "warnings": plan_text.padding_warnings(
            net.layers,
            per_chip // grad_accum_steps,
            packed=getattr(net.model, "packed", None),
        ),
    }
    if to.devices is None:
        per_image = counts.activation_bytes(net.model, net.image)
        numbers["activations_gib"] = per_image * per_chip / grad_accum_steps / GIB
        return numbers

    def probe(number: int) -> tuple[dict, Any]:
        images = number * to.chips * grad_accum_steps
        what = f"{config.model_name} at {height}x{width}, batch {images}, for {to.name}"
        with cli.working(f"compiling the training step of {what}"):
            tried, compiled = compile_step(
                _with_batch(config, images), net, devices=to.devices, batch=images
            )
        if to.available and not to.kind:  # the compiler for GPUs refuses nothing
            tried["fits"] &= tried["needed_gib"] <= to.available
        elif to.kind and tried["fits"]:
            # Where memory is tight, the parts are not all there at once.
            tried["needed_gib"] = min(tried["needed_gib"], to.available)
        fits = "fits" if tried["fits"] else "does not fit"
        cli.log(
            f"{fits}: {tried['needed_gib']:.2f} GiB, {tried['compile_seconds']:.0f} s"
        )
        return tried, compiled

    start = per_chip // grad_accum_steps
    first, compiled = probe(start)
    numbers |= first
    if compiled:
        flops = numbers["model_flops"]
        numbers |= step_costs.costs(compiled, to, model_flops=flops, images=batch)
    del compiled  # gigabytes of a full-size network
    if largest:

        def needed(number: int) -> tuple[bool, float]:
            tried = first if number == start else probe(number)[0]
            return tried["fits"], tried["needed_gib"]

        base = numbers["state_gib"]
        low, high = search_largest(
            needed, start, base=base, available=numbers["available_gib"]
        )
        unit = to.chips * grad_accum_steps
        numbers |= {"largest_batch": low * unit, "too_large_batch": high * unit}
    return numbers


def plan_rows(
    rows: Sequence[sweep_rows.Row], *, to: step_costs.Target, largest: bool = False
) -> dict[str, dict]:
    """``report`` of every row of a sweep, by the row's name.

    Raises:
      UserError: a row is wrong, before any is compiled.
    """
    nets = []
    for row in tqdm.tqdm(rows, "checking", unit="row", disable=len(rows) < 2):
        try:
            nets.append(network(row.config, to.chips))
        except UserError as error:
            raise UserError(f"row {row.name}: {error}") from error
    reports = {}
    for row, net in zip(tqdm.tqdm(rows, "planning", unit="row"), nets):
        try:
            reports[row.name] = report(row.config, net, to=to, largest=largest)
        except UserError as error:  # the others may have taken hours
            cli.log(f"error: row {row.name}: {error}")
            reports[row.name] = {"fits": False, "error": str(error)}
    return reports


def main(argv) -> int:
    del argv
    absl.logging.set_verbosity("fatal")  # jax tells which devices are not there
    config = _CONFIG.value
    path = Path(_JSON.value).expanduser()
    if _JSON.value and not path.absolute().parent.is_dir():
        raise UserError(f"--json {path}: {path.parent} is not a folder")
    to = target(_TOPOLOGY.value, _SLICES.value)
    if _SCALING.value:
        picture = Path(_SCALING.value).expanduser()
        if _SWEEP.value or not to.kind or to.slices > 1 or to.chips < 2:
            raise UserError("--weak_scaling needs one TPU slice of several chips")
        if picture.suffix != ".png" or not picture.absolute().parent.is_dir():
            raise UserError(f"--weak_scaling {picture}: expected FOLDER/FILE.png")
    if _SWEEP.value:
        file = cli.flag_value("config")
        rows, _ = sweep_rows.read(file, config, arguments.given_fields())
        reports = plan_rows(rows, to=to, largest=_LARGEST.value)
        print(plan_text.sweep_table(reports))
    else:
        net = network(config, to.chips)
        reports = {"": report(config, net, to=to, largest=_LARGEST.value)}
        print("\n".join(plan_text.lines(reports[""])))
        if _SCALING.value and "seconds" in reports[""]:
            rows = collectives.weak_scaling(reports[""], to.tpu_slice.generation)
            reports[""]["weak_scaling"] = rows
            print(f"\n{scaling_plot.table(rows)}")
            title = f"{net.model.__class__.__name__}, {config.batch_size} on {to.name}"
            scaling_plot.plot(rows, title, Path(_SCALING.value).expanduser())
    if _JSON.value:
        files.write_json(path, reports)
    return int(not all(numbers.get("fits", True) for numbers in reports.values()))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/.")
    _TOPOLOGY = flags.DEFINE_string(
        "topology", None, "v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:4x4, .., or gpu:8."
    )
    _SLICES = flags.DEFINE_integer("slices", 1, "TPU slices that train together.", 1)
    _LARGEST = flags.DEFINE_bool("largest_batch", False, "Search it.")
    _SWEEP = flags.DEFINE_bool("sweep", False, "All rows of the config's sweep().")
    _JSON = flags.DEFINE_string("json", "", "Also write the numbers to this file.")
    _SCALING = flags.DEFINE_string("weak_scaling", "", "Plot 4 to 256 chips: a .png.")
    flags.mark_flags_as_required(["config", "topology"])
    cli.run(main)
