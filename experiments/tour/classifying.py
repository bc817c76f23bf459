"""A classifier of patches whose fully connected layers become convolutions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tour import drawing
from segjax.data import scenes
from segjax.labels import VOID
from segjax.models import classifier
from segjax.ops import conv

PATCH = 32
_STRIDE, _MAP = 4, 5  # of the trunk below: two strides of 2, and 5x5 from a patch
_SHOWN = ("sky", "ground", "tree", "house", "pebble", "balloon")


def heat(*, steps: int = 800, scene: int = 3, side: int = 192, seed: int = 0) -> bytes:
    """A classifier of 32x32 patches, and the class maps that it gives of an image."""
    params = _train(steps, seed)
    made = drawing.scene(scene, side)
    image = jnp.array(made["image"], jnp.float32)
    center = (side - PATCH) // 2 // _STRIDE * _STRIDE
    patch = image[center : center + PATCH, center : center + PATCH]
    whole = jax.jit(lambda x: _scores(params, x, _as_convolutions))
    scores = whole(image[None])[0]
    alone = _scores(params, patch[None], _as_products)[0]
    gap = float(jnp.abs(alone - scores[center // _STRIDE, center // _STRIDE]).max())
    heats = np.array(jax.nn.softmax(scores))
    shown = [scenes.CLASSES.index(name) for name in _SHOWN]
    figure, axes = drawing.axes_grid(2, 4, (2.7, 2.9))
    drawing.picture(axes[0, 0], made["image"], f"image, {side}x{side}")
    box = np.array(patch).astype(np.uint8)
    drawing.picture(axes[1, 0], box, "the patch in its middle")
    text = f"fully connected against\nconvolution: {gap:.0e} apart"
    axes[1, 0].set_xlabel(text, fontsize=8)
    number = "x".join(map(str, heats.shape[:2]))
    for one, index in zip(axes[:, 1:].ravel(), shown):
        title = f"{scenes.CLASSES[index]}, {number} cells"
        drawing.picture(one, heats[..., index], title, cmap="magma", vmin=0, vmax=1)
    return drawing.png(figure)


def _scores(params: dict, images: jax.Array, fully: Callable) -> jax.Array:
    """Class scores of images [N, H, W, 3]; ``fully`` applies the last two layers."""
    x = images / 64 - 2
    for name in ("conv1", "conv2"):
        kernel, bias = params[name]
        x = jax.nn.relu(conv.conv2d(x, kernel, stride=2) + bias)
    return fully(params, x)


def _as_products(params: dict, x: jax.Array) -> jax.Array:
    """[N, 5, 5, C] -> [N, K], as in training."""
    (kernel, bias), (last, last_bias) = params["fc1"], params["fc2"]
    x = jax.nn.relu(x.reshape(len(x), -1) @ kernel + bias)
    return x @ last + last_bias


def _as_convolutions(params: dict, x: jax.Array) -> jax.Array:
    """[N, h, w, C] -> [N, h - 4, w - 4, K], with the same parameters."""
    (kernel, bias), (last, last_bias) = params["fc1"], params["fc2"]
    kernel = classifier.dense_to_conv(kernel, (_MAP, _MAP), "keras")
    x = jax.nn.relu(conv.conv2d(x, kernel) + bias)
    last = classifier.dense_to_conv(last, (1, 1), "keras")
    return conv.conv2d(x, last) + last_bias


def _train(steps: int, seed: int) -> dict:
    """Parameters of a classifier of the class in the middle of a patch."""
    rng = np.random.default_rng(seed)
    patches, classes = _patches(rng)
    params = {}
    shapes = {
        "conv1": (5, 5, 3, 16),
        "conv2": (5, 5, 16, 32),
        "fc1": (_MAP * _MAP * 32, 64),
        "fc2": (64, len(scenes.CLASSES)),
    }
    for name, shape in shapes.items():
        deviation = (2 / np.prod(shape[:-1])) ** 0.5
        kernel = jnp.array(rng.normal(0, deviation, shape), jnp.float32)
        params[name] = kernel, jnp.zeros(shape[-1])
    optimizer = optax.adam(1e-3)

    def loss(params, images, labels):
        scores = _scores(params, images.astype(jnp.float32), _as_products)
        costs = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return costs.mean()

    @jax.jit
    def step(params, state, images, labels):
        gradient = jax.grad(loss)(params, images, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        chosen = rng.integers(0, len(patches), 64)
        params, state = step(params, state, patches[chosen], classes[chosen])
    return params


def _patches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patches uint8 [N, 32, 32, 3] of scenes, as many of every class as there are."""
    patches, classes = [], []
    for index in range(120):
        made = scenes.scene(0, index, size=(192, 192))
        inside = made["label"][PATCH // 2 : -PATCH // 2, PATCH // 2 : -PATCH // 2]
        for label in np.unique(inside[inside != VOID]):
            rows, columns = np.nonzero(inside == label)
            for at in rng.integers(0, len(rows), 4):
                y, x = rows[at], columns[at]
                patches.append(made["image"][y : y + PATCH, x : x + PATCH])
                classes.append(label)
    return np.stack(patches), np.array(classes, np.int32)
