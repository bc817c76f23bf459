"""Times prediction and training step of the published networks at one image size.

    python -m experiments.benchmarks.networks
    python -m experiments.benchmarks.networks --models="unet" --size=320
    python -m experiments.benchmarks.networks --json=times.json \\
        --markdown=docs/step_times.md

Full-size networks with 21 classes and random weights, one after the other, on the first
device: the forward pass of prediction, and a whole training step (forward, backward,
plain SGD), in turns. A network that does not take the size gets the next larger one
that it takes. Compilation is timed too, without the cache of compiled programs.

--json keeps the results: a run adds to those in the file, so a table can be measured in
pieces; --markdown writes the table of all of them.

Exit codes: 0; 2 bad input.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from experiments.benchmarks import measuring
from experiments.shared import cli
from segjax import config as config_lib
from segjax import files, models, published, tables, training
from segjax.analysis import counts, tracing
from segjax.models.network import abstract_variables
from segjax.ops import geometry

CLASSES = 21
# The variants of each architecture that differ in what they compute; --models takes
# all others, too.
NETWORKS = (
    "fcn-alexnet",
    "fcn32s",
    "fcn8s",
    "fcn-googlenet",
    "deconvnet",
    "dilation8-voc",
    "dilation8-camvid",
    "deeplab-7x7",
    "deeplab-largefov",
    "deeplab-v2-vgg16-aspp-l",
    "deeplab-v2-resnet101",
    "crfrnn-voc",
    "unet",
    "unet-carvana",
    "fusionnet",
    "fusionnet-released",
    "contextual",
    "frrn-a",
    "frrn-b",
    "cfm-a",
    "hypercolumn",
    "pspnet50-ade20k",
    "pspnet101-voc",
    "zoomout",
)
REFERENCE = "fcn8s"  # what the last column is relative to


_TIMES = measuring.struct(seconds=measuring.SECONDS, compile_seconds=measuring.SECONDS)
SCHEMA = measuring.struct(
    image=measuring.COUNT,
    parameters=measuring.COUNT,
    flops=measuring.COUNT,
    bytes=measuring.COUNT,
    forward=_TIMES,
    step=_TIMES,
)


def measure(network: published.Network, *, size: int, batch: int, repeats: int) -> dict:
    """Sizes and times of one network on the first device.

    Args:
      size: side of the square images, at least.
      batch: images per step.
      repeats: of which the median counts.

    Returns:
      ``image`` (side in pixels), ``parameters``, ``flops`` of a forward pass of the
      batch, ``forward`` and ``step``: each ``seconds`` and ``compile_seconds``, and
      ``bytes`` that the step needs on the device, as XLA plans it.
    """
    config = {"model_name": network.model, "model": dict(network.fields)}
    model = models.build(ConfigDict(config), CLASSES)
    side = geometry.nearest_sides(model.tiling, size)[-1]
    macs = counts.macs(_trace(model, side).jaxpr)
    state = random_state(model)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rng = np.random.default_rng(0)
    examples = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
            "label": rng.integers(0, CLASSES, (batch, side, side), np.uint8),
        }
    )

    def forward(state, examples):
        return logits(model, state, examples["image"])

    options = config_lib.make().loss
    step = training.make_step(model, optax.sgd(1e-9), options=options, seed=0)
    executables, compile_seconds = {}, {}
    for name, function in (
        ("forward", jax.jit(forward)),
        ("step", jax.jit(step, donate_argnums=0)),
    ):
        executables[name], compile_seconds[name] = measuring.compile_timed(
            function, state, examples
        )

    def run_step():
        nonlocal state
        state, metrics = executables["step"](state, examples)
        return metrics

    seconds = measuring.in_turns(
        {"forward": lambda: executables["forward"](state, examples), "step": run_step},
        repeats,
    )
    return {
        "image": side,
        "parameters": parameters,
        "flops": 2 * batch * macs,
        "bytes": _bytes(executables["step"]),
    } | {
        name: {"seconds": seconds[name], "compile_seconds": compile_seconds[name]}
        for name in executables
    }


def logits(
    model: nn.Module, state: training.TrainState, images: jax.Array
) -> jax.Array:
    """Logits of prediction."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model.apply(variables, images, train=False)[0]


def _trace(model: nn.Module, side: int):
    variables = abstract_variables(model, 3)
    return tracing.trace(tracing.plain_form(model), variables, (side, side, 3)).jaxpr


def random_state(model: nn.Module) -> training.TrainState:
    """Random kernels: compiling the initialization would take longer than the step."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            values = rng.standard_normal(leaf.shape, np.float32)
            return values * np.float32(math.sqrt(2 / math.prod(leaf.shape[:-1])))
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    variables = abstract_variables(model, 3)
    variables = jax.tree_util.tree_map_with_path(draw, variables)
    params = jax.device_put(variables["params"])
    return training.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=jax.device_put(variables.get("batch_stats", {})),
        opt_state=optax.sgd(1e-9).init(params),
    )


def _bytes(executable: jax.stages.Compiled) -> int:
    """Arguments, results and temporary arrays; 0 where the device does not tell."""
    memory = executable.memory_analysis()
    if memory is None:
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def rows(results: Mapping[str, dict]) -> tables.Rows:
    """The table, in the order of published.NETWORKS."""
    titles = "network, side, parameters, GFLOPs, forward ms, step ms, GFLOP/s, "
    titles += "compile s, memory GiB, relative"
    lines = [tuple(titles.split(", "))]
    reference = results.get(REFERENCE)
    for name in sorted(results, key=list(published.NETWORKS).index):
        row = results[name]
        forward, step = row["forward"], row["step"]
        relative = "-"
        if reference:
            relative = f"{step['seconds'] / reference['step']['seconds']:.2f}"
        lines.append(
            (
                name,
                str(row["image"]),
                f"{row['parameters']:,}",
                f"{row['flops'] / 1e9:,.1f}",
                f"{1e3 * forward['seconds']:,.{_digits(forward['seconds'])}f}",
                f"{1e3 * step['seconds']:,.{_digits(step['seconds'])}f}",
                f"{3 * row['flops'] / step['seconds'] / 1e9:,.0f}",
                f"{forward['compile_seconds']:.1f} + {step['compile_seconds']:.1f}",
                f"{row['bytes'] / 2**30:.2f}",
                relative,
            )
        )
    return lines


def _digits(seconds: float) -> int:
    return 0 if seconds >= 0.1 else 2


_MARKDOWN = """# Step times

Written by `python -m experiments.benchmarks.networks {flags} --json=times.json
--markdown=docs/step_times.md`; `--models=NAME` measures one network, and adds it to the
others in the file of `--json`.{missing}

{device}, {host_cores} host cores; Python {python}, jax {jax}, jaxlib {jaxlib}. Batch
{batch}, 21 classes, float32, median of {repeats}. Compare times within this table only.

{table}

* **Side** of the square images: {size}, or the next larger one that the network takes.
* **GFLOPs** of the forward pass of the batch, fixed interpolation included: twice the
  multiply-adds of the form that the paper writes down.
* **Forward**: prediction of the logits. **Step**: training, forward and backward passes
  with all auxiliary losses and an SGD update.
* **GFLOP/s**: 3 x GFLOPs (forward, and twice that backward) per time of the step.
  Auxiliary heads, which only training has, are not counted.
* **Compile**: forward + step, tracing included, without a cache.
* **Memory** of the step as XLA plans it: parameters, gradients, activations.
* **Relative**: step time over that of {reference}.

`python -m experiments.benchmarks.operators` times the operators of the networks.
"""


def markdown(results: Mapping[str, dict], where: Mapping[str, Any]) -> str:
    """The contents of docs/step_times.md."""
    missing = [name for name in NETWORKS if name not in results]
    return _MARKDOWN.format(
        missing=f" Not measured: {', '.join(missing)}." if missing else "",
        flags=" ".join(f"--{key}={where[key]}" for key in ("size", "batch", "repeats")),
        table=tables.markdown_table(rows(results)),
        reference=REFERENCE,
        **where,
    )


def check_networks(names: Sequence[str]) -> None:
    """Raises a UserError unless all networks are known."""
    for name in names:
        published.find(name, "--models")


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    names = values.models or NETWORKS
    check_networks(names)
    outputs = measuring.output_files(values)
    cli.start()
    jax.config.update("jax_enable_compilation_cache", False)
    options = {key: values[key].value for key in ("size", "batch", "repeats")}
    where = measuring.conditions(**options)
    results = measuring.load(
        outputs.get("json"), where, schema=SCHEMA, names=published.NETWORKS
    )
    for count, name in enumerate(names, start=1):
        cli.log(f"[{count}/{len(names)}] {name} ...")
        network = published.NETWORKS[name]
        results[name] = measure(network, **options)
        forward, step = (1e3 * results[name][k]["seconds"] for k in ("forward", "step"))
        cli.log(f"    forward {forward:,.1f} ms, step {step:,.1f} ms")
        if "json" in outputs:
            measuring.save(outputs["json"], where, results)
        jax.clear_caches()  # the programs hold on to their constants
        gc.collect()
    print(tables.text_table(rows(results)))
    if "markdown" in outputs:
        files.write_text(outputs["markdown"], markdown(results, where))
        print(f"written to {outputs['markdown']}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_multi_string(
        "models", [], "A network of docs/models.md; repeat it for several."
    )
    flags.DEFINE_integer("size", 224, "Side of the images.", lower_bound=1)
    flags.DEFINE_integer("batch", 1, "Images per step.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "The median counts.", lower_bound=1)
    flags.DEFINE_string("json", "", "File of results, read and added to.")
    flags.DEFINE_string("markdown", "", "File for the table of all results.")
    cli.run(main)
