"""CRF-RNN (Zheng et al., ICCV 2015): mean-field iterations as layers of a network."""

import ast
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import filters, geometry, mean_field

_KERNEL_WEIGHTS = ("full", "diagonal", "scalar")
_COMPATIBILITIES = ("full", "symmetric", "potts")


class MeanField(nn.Module):
    """Class scores [N, H, W, K] -> refined scores, after `iterations` updates.

    Scores are unnormalized log-probabilities, the negative of an energy. With S and B
    the normalized spatial and bilateral filters, an iteration is (paper, section 4.1)

        p = softmax(q);  q = U - mu (W_s S p + W_b B p)

    where mu = -I rewards equal labels. Fields are those of CRFRNN.
    """

    spatial_weight: float
    bilateral_weight: float
    kernel_weights: str
    compatibility: str
    untied: int
    remat: bool

    @nn.compact
    def __call__(
        self,
        unary: jax.Array,
        spatial: filters.Filter,
        *,
        bilateral: filters.Filter,
        iterations: int,
    ) -> jax.Array:
        batch, height, width, classes = unary.shape
        eye = jnp.eye(classes)

        def matrices(name: str, form: str, value: float) -> jax.Array:
            """[T, K, K] for T iterations, learned in this form, value * I at first."""
            forms = {"scalar": jnp.ones(()), "diagonal": jnp.ones(classes)}
            start = value * forms.get(form, eye)
            steps = (self.untied,) if self.untied else ()
            weight = self.param(
                name, lambda _: jnp.broadcast_to(start, (*steps, *start.shape))
            )
            if form == "symmetric":
                weight = (weight + weight.swapaxes(-1, -2)) / 2
            if start.ndim < 2:
                axes = tuple(range(start.ndim - 2, 0))
                weight = jnp.expand_dims(weight, axes) * eye
            return jnp.broadcast_to(weight, (iterations, *eye.shape))

        form = self.kernel_weights
        w_s = matrices("spatial_ker_weights", form, self.spatial_weight)
        w_b = matrices("bilateral_ker_weights", form, self.bilateral_weight)
        mu = jnp.broadcast_to(-eye, w_s.shape)
        if self.compatibility != "potts":
            mu = matrices("compatibility_matrix", self.compatibility, -1.0)
        u = unary.reshape(batch, -1, classes)

        def step(q: jax.Array, weights: tuple) -> tuple[jax.Array, None]:
            w_s, w_b, mu = weights
            kernels = [
                mean_field.Kernel(spatial, _product(mu, w_s)),
                mean_field.Kernel(bilateral, _product(mu, w_b)),
            ]
            return u - mean_field.pairwise(kernels, jax.nn.softmax(q)), None

        # Keeps the scores of every iteration instead of all that is between them.
        step = jax.checkpoint(step) if self.remat else step
        q, _ = jax.lax.scan(step, u, (w_s, w_b, mu))
        return q.reshape(unary.shape)


def _identity(values: jax.Array) -> jax.Array:
    return values


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class CRFRNN(nn.Module):
    """A network of same-size class scores, then mean-field iterations (Figure 3).

    Images [N, H, W, C] -> scores [N, H, W, K] after the last iteration, as they enter
    the loss: not normalized.

    Parameters of the base network keep the names they have in it, so that
    ``init_from`` takes them from a trained one (the paper starts from FCN-8s); those of
    the CRF are crfrnn/spatial_ker_weights, crfrnn/bilateral_ker_weights and
    crfrnn/compatibility_matrix. The paper trains all jointly with a momentum of 0.99, a
    rate of 1e-13 on the loss summed over an image, and factors on the CRF's that are
    ``optim.lr_mult=("ker_weights=1e4", "compatibility_matrix=1e3")`` here. Such factors
    belong to such a rate: with Adam leave them at 1.

    Attributes:
      num_classes: K.
      base: a key of segjax.models.MODELS.
      base_options: "FIELD=VALUE" of the base network; the others keep their defaults:
        ("skips=16", "norm=batch", "widths=8,8,16,16,16").
      iterations_train: 5 in the paper.
      iterations_test: 10 in the paper.
      theta_alpha: of the bilateral kernel, px; not learned, like the next two.
      theta_beta: of the bilateral kernel, gray levels.
      theta_gamma: of the spatial kernel, px.
      spatial_weight, bilateral_weight: initial weights of the kernels: W = weight * I.
      kernel_weights: "full": a K x K matrix per kernel (the released layers);
        "diagonal": a weight per class and kernel; "scalar": a weight per kernel (in the
        paper class-specific ones are worth 1.8 points).
      compatibility: "full": mu is any K x K matrix; "symmetric" (in the paper the
        asymmetric ones are worth 0.9 points); "potts": -I, not learned.
      untied: parameters of their own for each iteration (worse in the paper); needs as
        many iterations at test.
      spatial_filter: "lattice" (the paper), or "separable" or "exact", which agree with
        each other and with the lattice to a few percent.
      bilateral_filter: "lattice", or "exact" for small images: (H W)^2 work.
      color_order: of the colors in the bilateral lattice: "rgb", "bgr" or "caffe" (the
        released network), see ops/filters.COLOR_ORDERS. A lattice is not invariant to
        it: half a percent of the labels.
      capacity: of the bilateral lattice, as a fraction of the H W (C + 3) vertices that
        it can have at most; 0.0: all of them. Photos need less (ops/lattice.py), which
        saves time and memory. An image that needs more gets NaN scores, at which
        training stops.
      unary_loss: adds the endpoint aux_logits_unary in training: an auxiliary loss on
        the scores of the base network, of weight ``config.loss.aux_weight``.
      remat: recomputes each iteration in the backward pass, so that what it needs to
        keep is one map of scores per iteration.

    Endpoints: those of the base network, unary (its scores [N, H, W, K]).

    Raises:
      UserError: a bad field value, or a base network whose output is not as large as
        the image.
    """

    num_classes: int
    base: str = "fcn"
    base_options: tuple[str, ...] = ()
    iterations_train: int = 5
    iterations_test: int = 10
    theta_alpha: float = 160.0
    theta_beta: float = 3.0
    theta_gamma: float = 3.0
    spatial_weight: float = 3.0
    bilateral_weight: float = 5.0
    kernel_weights: str = "full"
    compatibility: str = "full"
    untied: bool = False
    spatial_filter: str = "lattice"
    bilateral_filter: str = "lattice"
    color_order: str = "rgb"
    capacity: float = 0.0
    unary_loss: bool = False
    remat: bool = True

    def __post_init__(self) -> None:
        layers.check_choice(self, "kernel_weights", _KERNEL_WEIGHTS)
        layers.check_choice(self, "compatibility", _COMPATIBILITIES)
        layers.check_choice(self, "spatial_filter", ("lattice", "separable", "exact"))
        layers.check_choice(self, "bilateral_filter", ("lattice", "exact"))
        layers.check_choice(self, "color_order", filters.COLOR_ORDERS)
        iterations = self.iterations_train, self.iterations_test
        if min(iterations) < 0 or (self.untied and len({*iterations}) > 1):
            raise UserError(
                f"{layers.flag(self, 'iterations_train')} "
                f"and iterations_test are {iterations}, "
                f"expected 0 or more, and with untied the same number twice"
            )
        for field in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not getattr(self, field) > 0:
                raise UserError(
                    f"{layers.flag(self, field)} "
                    f"is {getattr(self, field)}, expected more than 0"
                )
        if not 0 <= self.capacity <= 1:
            raise UserError(
                f"{layers.flag(self, 'capacity')} "
                f"is {self.capacity}, expected a fraction, 0.0 to 1.0"
            )
        if self.tiling.margin:
            raise UserError(
                f"{layers.flag(self, 'base')}: "
                f"{self.base!r} with base_options {self.base_options} "
                f"loses {self.tiling.margin} pixels on every side, expected a network "
                f"whose output is as large as the image"
            )
        super().__post_init__()

    coarse_scores = None

    @property
    def tiling(self) -> geometry.Tiling:
        """That of the base network."""
        return self._network(parent=None).tiling

    @property
    def frozen(self) -> tuple[str, ...]:
        """Modules that never change: those of the base network."""
        return getattr(self._network(parent=None), "frozen", ())

    def _network(self, **where: Any) -> nn.Module:
        from segjax import models  # that module imports this one

        layers.check_choice(self, "base", sorted(models.MODELS.keys() - {"crfrnn"}))
        fields = base_fields(self.base, self.base_options)
        network = models.MODELS[self.base]
        return network(num_classes=self.num_classes, **fields, **where)

    def setup(self) -> None:
        self.network = self._network()
        # Its parameters get the names they have without the CRF.
        nn.share_scope(self, self.network)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        filters.check_colors(images.shape[-1])
        unary, endpoints = self.network(images, train)
        endpoints = {**endpoints, "unary": unary}
        # Losses on the scales of DeepLab v2 are its own; unary_loss is the one here.
        endpoints.pop("scale_logits", None)
        if train and self.unary_loss:
            endpoints["aux_logits_unary"] = unary
        crf = MeanField(
            spatial_weight=self.spatial_weight,
            bilateral_weight=self.bilateral_weight,
            kernel_weights=self.kernel_weights,
            compatibility=self.compatibility,
            untied=self.iterations_train if self.untied else 0,
            remat=self.remat,
            name="crfrnn",
        )
        iterations = self.iterations_train if train else self.iterations_test
        # Parameters do not depend on the kernels, which take long to compile.
        idle = self.is_initializing()
        spatial, bilateral = (_identity, _identity) if idle else self._filters(images)
        scores = crf(unary, spatial, bilateral=bilateral, iterations=iterations)
        return scores, endpoints

    def _filters(self, images: jax.Array) -> tuple[filters.Filter, filters.Filter]:
        batch, height, width, _ = images.shape
        size = height, width
        positions = filters.smoothness_features(*size, self.theta_gamma)
        if self.spatial_filter == "separable":
            spatial = filters.separable_filter(*size, self.theta_gamma)
        elif self.spatial_filter == "exact":
            spatial = filters.exact_filter(positions)
        else:
            capacity = mean_field.smoothness_capacity(*size, self.theta_gamma)
            spatial = filters.lattice_filter(positions, capacity)
        features = filters.appearance_features(
            images, self.theta_alpha, self.theta_beta, color_order=self.color_order
        )
        if self.bilateral_filter == "exact":
            bilateral = filters.exact_filter(features)
        else:
            _, points, dims = features.shape
            capacity = math.ceil(self.capacity * points * (dims + 1))
            bilateral = filters.lattice_filter(features, capacity)
        return (
            filters.normalize(spatial, "after", batch=1, points=height * width),
            filters.normalize(bilateral, "after", batch=batch, points=height * width),
        )


def base_fields(base: str, options: tuple[str, ...]) -> dict[str, Any]:
    """All fields of the base network, from its name and ``base_options``.

    Raises:
      UserError: an option that is not FIELD=VALUE of the network.
    """
    from segjax import models  # that module imports this one

    known = models.model_fields(base)
    return known | dict(_option(base, text, known) for text in options)


def _option(base: str, text: str, known: dict[str, Any]) -> tuple[str, Any]:
    """ "skips=16" -> ("skips", 16), of the type of the default."""
    value: Any
    field, _, value = str(text).partition("=")
    if field not in known:
        raise UserError(
            f"--config.model.base_options (CRFRNN): "
            f"{text!r} is not FIELD=VALUE of {base!r}; its fields "
            f"are {', '.join(known)}"
        )
    default = known[field]
    if not isinstance(default, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = tuple(value.split(","))
        if isinstance(default, tuple) and not isinstance(value, tuple):
            value = (value,)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
    if type(value) is not type(default):
        raise UserError(
            f"--config.model.base_options (CRFRNN): "
            f"{text!r}, expected {type(default).__name__}, such "
            f"as {default!r}"
        )
    return field, value
