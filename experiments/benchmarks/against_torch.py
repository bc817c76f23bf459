"""Times networks beside PyTorch's on the same CPU: forward pass and training step.

    python -m experiments.benchmarks.against_torch --json=against_torch.json
    python -m experiments.benchmarks.against_torch --networks=unet --repeats=9

For each of NETWORKS: the network of this package and the same in PyTorch (eager,
channels_last, float32), with random weights, in one process and in turns: one call of
each per round. The ratio comes first: the median over the rounds of PyTorch's time over
ours, so above 1 ours is faster. What else the machine does meets both. Before anything
is timed, both must have as many parameters and logits of the same shape. PyTorch
must be installed (pip install torch).

Exit codes: 0; 2 bad input, or PyTorch is missing.
"""

import gc
import os
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

# The threads of both sleep between their turns instead of spinning in the other's.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from experiments.benchmarks import measuring, networks
from experiments.shared import cli
from segjax import config as config_lib
from segjax import errors, models, tables, training
from segjax.errors import UserError


class Pair(NamedTuple):
    """A network here and in torch_networks.py, and the images that both get."""

    model: str
    fields: Mapping[str, Any]
    peer: str
    forward: tuple[int, int, int]  # images, height, width
    step: tuple[int, int, int]


NETWORKS = {
    "unet": Pair("unet", dict(dropout=0.0), "UNet", (1, 380, 380), (1, 252, 252)),
    "fcn8s": Pair("fcn", dict(skips=8), "FCN8s", (1, 187, 250), (2, 128, 128)),
    "frrn-a": Pair("frrn", dict(variant="a"), "FRRNA", (1, 128, 256), (2, 64, 128)),
    "deeplab-v2": Pair("deeplab", {}, "DeepLab", (1, 161, 161), (2, 161, 161)),
    "pspnet50": Pair(
        "pspnet", dict(stride_in_1x1=True), "PSPNet", (1, 233, 233), (2, 161, 161)
    ),
}
SECONDS = {"type": "array", "items": measuring.SECONDS, "minItems": 1}
_SIDES = measuring.struct(ours=SECONDS, torch=SECONDS)
SCHEMA = measuring.struct(
    parameters=measuring.COUNT, threads=measuring.COUNT, forward=_SIDES, step=_SIDES
)


def load_torch():
    """PyTorch and the peers.

    Raises:
      UserError: it is not installed.
    """
    try:
        import torch

        from experiments.benchmarks import torch_networks
    except ImportError as error:
        raise UserError(f"PyTorch is needed: pip install torch ({error})") from error
    return torch, torch_networks


def measure(pair: Pair, repeats: int) -> dict[str, Any]:
    """Seconds of every round of both, for ``forward`` and ``step``.

    Raises:
      UserError: the two networks are not the same.
    """
    torch, peers = load_torch()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    config = {"model_name": pair.model, "model": dict(pair.fields)}
    model = models.build(ConfigDict(config), networks.CLASSES)
    state = networks.random_state(model)
    peer = getattr(peers, pair.peer)().to(memory_format=torch.channels_last)
    numbers = (
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        sum(p.numel() for p in peer.parameters() if p.requires_grad),
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (*pair.forward, 3), np.uint8)
    ours = jax.jit(lambda state, images: networks.logits(model, state, images))
    ours = ours.lower(state, images).compile()
    peer.eval()

    def to_torch(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return x.contiguous(memory_format=torch.channels_last)

    x, found = to_torch(images), ours(state, images)
    with torch.inference_mode():
        shape = tuple(peer(x)[0].permute(0, 2, 3, 1).shape)
    if numbers[0] != numbers[1] or shape != found.shape:
        raise UserError(
            f"{pair.model}: {numbers[0]:,} parameters and logits {found.shape}, "
            f"of the peer {numbers[1]:,} and {shape}; expected the same"
        )

    @torch.inference_mode()
    def peer_forward():
        peer(x)

    forward = measuring.rounds(
        {"ours": lambda: ours(state, images), "torch": peer_forward}, repeats
    )
    return {
        "parameters": numbers[0],
        "threads": threads,
        "forward": forward,
        "step": _steps(pair, model, state, peer=peer, repeats=repeats),
    }


def _steps(pair, model, state, *, peer, repeats) -> dict[str, list[float]]:
    torch, _ = load_torch()
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (*pair.step, 3), np.uint8)
    labels = rng.integers(0, networks.CLASSES, pair.step, np.uint8)
    examples = jax.device_put({"image": images, "label": labels})
    options = config_lib.make().loss
    step = training.make_step(model, optax.sgd(1e-9), options=options, seed=0)
    step = jax.jit(step, donate_argnums=0).lower(state, examples).compile()

    def ours():
        nonlocal state
        state, metrics = step(state, examples)
        return metrics

    peer.train()
    optimizer = torch.optim.SGD(
        [p for p in peer.parameters() if p.requires_grad], lr=1e-9
    )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.from_numpy(labels).long()

    def theirs():
        logits, aux = peer(x)
        margin = (target.shape[1] - logits.shape[2]) // 2
        inner = target[:, margin : margin + logits.shape[2]]
        inner = inner[:, :, margin : margin + logits.shape[3]]
        loss = torch.nn.functional.cross_entropy(logits, inner)
        if aux is not None:
            loss = loss + 0.4 * torch.nn.functional.cross_entropy(aux, inner)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return measuring.rounds({"ours": ours, "torch": theirs}, repeats)


def ratio(times: Mapping[str, list[float]]) -> float:
    """The median over the rounds of PyTorch's time over ours."""
    pairs = zip(times["torch"], times["ours"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def rows(results: Mapping[str, dict]) -> tables.Rows:
    """The table: ratios first, then the medians in milliseconds."""
    titles = "network, forward ratio, step ratio, forward ms, torch, step ms, torch"
    lines = [tuple(titles.split(", "))]
    for name in NETWORKS:
        if name in results:
            both = [results[name][key] for key in ("forward", "step")]
            medians = (
                f"{1e3 * statistics.median(times[side]):,.0f}"
                for times in both
                for side in ("ours", "torch")
            )
            lines.append((name, *(f"{ratio(times):.2f}" for times in both), *medians))
    return lines


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    names = values.networks or list(NETWORKS)
    for name in names:
        if name not in NETWORKS:
            raise errors.unknown("--networks", name, NETWORKS)
    outputs = measuring.output_files(values, ("json",))
    torch, _ = load_torch()
    cli.start()
    jax.config.update("jax_enable_compilation_cache", False)
    where = measuring.conditions(repeats=values.repeats, torch=torch.__version__)
    results = measuring.load(outputs.get("json"), where, schema=SCHEMA, names=NETWORKS)
    for count, name in enumerate(names, start=1):
        cli.log(f"[{count}/{len(names)}] {name} ...")
        results[name] = measure(NETWORKS[name], values.repeats)
        times = (ratio(results[name][key]) for key in ("forward", "step"))
        cli.log("    PyTorch / ours: forward {:.2f}, step {:.2f}".format(*times))
        if "json" in outputs:
            measuring.save(outputs["json"], where, results)
        jax.clear_caches()
        gc.collect()
    print(tables.text_table(rows(results)))
    return 0


if __name__ == "__main__":
    flags.DEFINE_multi_string("networks", [], "One of NETWORKS; may be repeated.")
    flags.DEFINE_integer("repeats", 5, "Rounds; medians count.", lower_bound=1)
    flags.DEFINE_string("json", "", "File of results, read and added to.")
    cli.run(main)
