"""Mean field beside exact sampling and Robust P^n segments, on a small image."""

import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from experiments.tour import drawing, gibbs
from segjax.data import scenes
from segjax.labels import VOID
from segjax.ops import mean_field, superpixels

_ZOOM = 4  # the image is a scene that is reduced by this


def crf(
    *,
    iterations: int = 10,
    sweeps: int = 300,
    noise: float = 0.4,
    gamma: float = 2.0,
    share: float = 0.3,
    scene: int = 7,
    side: int = 32,
    seed: int = 0,
) -> bytes:
    """Three inferences from the same wrong labels, and their energies."""
    drawing.check_at_most("side", side, 64)  # all pairs of pixels are in memory
    made = drawing.scene(scene, _ZOOM * side)
    image = cv2.resize(made["image"], (side, side), interpolation=cv2.INTER_AREA)
    truth = made["label"][_ZOOM // 2 :: _ZOOM, _ZOOM // 2 :: _ZOOM]
    classes = len(scenes.CLASSES)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, classes, truth.shape)
    wrong = (rng.random(truth.shape) < noise) | (truth == VOID)
    given = np.where(wrong, drawn, truth)
    # What the noise says: the given label is right with a probability of 1 - noise.
    certain = np.clip(1 - noise + noise / classes, 1 / classes, 0.99)
    unary = np.full((side * side, classes), -np.log((1 - certain) / (classes - 1)))
    unary[np.arange(side * side), given.ravel()] = -np.log(certain)
    unary = jnp.array(unary, jnp.float32)
    near = _gaussian(image, xy=1.5, rgb=1e6)
    alike = _gaussian(image, xy=7.0, rgb=15.0)
    pairs = jnp.array(0.1 * near + 0.2 * alike, jnp.float32)
    labels = jnp.array(given.ravel(), jnp.int32)
    none = jnp.zeros(side * side, jnp.int32)

    kernel = mean_field.Kernel(lambda v: jnp.einsum("nm,bmk->bnk", pairs, v), 1.0)
    run = jax.jit(
        lambda unary: mean_field.trace(unary[None], [kernel], iterations=iterations)
    )
    (q, energies, divergences), fast = _timed(run, unary)
    # Equal labels are rewarded there, different ones are charged here.
    offset = float(pairs.sum()) / 2
    field = gibbs.Field(unary, pairs, none)
    ones = jnp.ones(sweeps)
    key = jax.random.key(seed)
    (samples, exact), slow = _timed(gibbs.sample, key, field, labels, ones)
    kept = np.array(samples[sweeps // 3 :])
    marginals = np.stack([(kept == k).mean(0) for k in range(classes)], -1)

    regions = superpixels.slic(image[None], superpixels=side * side // 12)[0]
    grid = gibbs.Field(
        unary, jnp.array(0.8 * _neighbors(side)), regions.ravel(), gamma, share
    )
    falling = jnp.array(np.geomspace(2, 0.05, sweeps), jnp.float32)
    (segmented, _), annealed = _timed(gibbs.sample, key, grid, labels, falling)

    found = {
        "from the noisy labels": given,
        f"mean field, {_time(fast)}": np.array(q[0]).argmax(-1),
        f"sampling, {_time(slow)}": marginals.argmax(-1),
        f"Robust P^n, {_time(annealed)}": np.array(segmented[-1]),
    }
    figure = drawing.new_figure(11.5, 6.2)
    axes = figure.subplot_mosaic([list("ivtsrx"), list("eeeddd")], height_ratios=(2, 3))
    drawing.picture(axes["i"], image, f"image, {side}x{side}")
    for name, (title, label) in zip("vtsr", found.items()):
        label = label.reshape(side, side).astype(np.uint8)
        right = 100 * (label == truth)[truth != VOID].mean()
        text = f"{title}\n{right:.0f} % right"
        drawing.picture(axes[name], drawing.labels(label), text)
    drawing.picture(axes["x"], _outlined(image, np.array(regions)), "segments of P^n")
    left, right = axes["e"], axes["d"]
    left.plot(np.array(energies)[:, 0] + offset, "o-", label="expected energy of Q")
    label = "energy - entropy: KL(Q || P) - log Z"
    left.plot(np.array(divergences)[:, 0] + offset, "s-", label=label)
    left.set_xlabel("updates of the mean field")
    right.plot(
        np.arange(1, sweeps + 1), exact, linewidth=0.8, label="energy of a sample"
    )
    level = float(np.mean(exact[sweeps // 3 :]))
    right.axhline(level, color="black", linestyle=":", label="mean")
    right.set_xlabel("sweeps of the sampler")
    right.set_ylabel("energy")
    gap = np.abs(marginals - np.array(q[0])).sum(1).mean() / 2
    right.set_title(f"mean distance of its marginals to Q: {gap:.3f}", fontsize=9)
    left.axhline(level, color="black", linestyle=":", label="mean energy of samples")
    for one in (left, right):
        one.grid(alpha=0.3)
        one.legend(fontsize=8)
    return drawing.png(figure)


def _timed(function, *arguments):
    """The result of a jitted function, and its seconds without compiling."""
    compiled = function.lower(*arguments).compile()
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(*arguments))
    return result, time.perf_counter() - began


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _gaussian(image: np.ndarray, *, xy: float, rgb: float) -> np.ndarray:
    """Gaussian similarities of all pairs of different pixels, [N, N]."""
    side = len(image)
    y, x = np.mgrid[:side, :side]
    places = np.stack([x, y], -1).reshape(-1, 2) / xy
    features = np.concatenate([places, image.reshape(-1, 3) / rgb], axis=1)
    squares = ((features[:, None] - features[None]) ** 2).sum(-1)
    similar = np.exp(-squares / 2)
    np.fill_diagonal(similar, 0)
    return similar


def _neighbors(side: int) -> np.ndarray:
    """1 for each pair of pixels that share an edge, float32 [N, N]."""
    y, x = np.divmod(np.arange(side * side), side)
    apart = np.abs(y[:, None] - y) + np.abs(x[:, None] - x)
    return (apart == 1).astype(np.float32)


def _outlined(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Every pixel enlarged, with lines between regions."""
    image = image.repeat(8, 0).repeat(8, 1)
    regions = regions.repeat(8, 0).repeat(8, 1)
    edge = np.zeros(regions.shape, bool)
    edge[1:] |= regions[1:] != regions[:-1]
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    image[edge] = (255, 230, 0)
    return image
