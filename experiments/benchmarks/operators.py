"""Times the operators of the networks as they are written here, and as XLA has them.

    python -m experiments.benchmarks.operators
    python -m experiments.benchmarks.operators --operators="conv 3x3" --repeats=20
    python -m experiments.benchmarks.operators --markdown=docs/op_times.md

For each of OPERATORS, on the first device and in turns: the form in segjax.ops
and the plain one of jax.lax; forward, and forward with all gradients. Both must give
the same numbers. --json keeps results, and adds to those in the file.

Exit codes: 0; 1 if results differ; 2 bad input.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import measuring
from experiments.shared import cli
from segjax import errors, files, tables
from segjax.ops import conv, pool

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain_conv2d(x, kernel, *, stride=1, padding=0, dilation=1, groups=1) -> jax.Array:
    """`conv.conv2d` as one convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def plain_conv_transpose(x, kernel, *, stride, padding=0) -> jax.Array:
    """`conv.conv_transpose` as one convolution of the map with zeros in between."""
    edge = len(kernel) - 1 - padding
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=((edge, edge), (edge, edge)),
        lhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )


def plain_bilinear_upsample(x, size, *, stride, offset, crop) -> jax.Array:
    """`conv.bilinear_upsample` as one grouped transposed convolution."""
    channels = x.shape[3]
    kernel = jnp.asarray(conv.bilinear_kernel(size), x.dtype)[:, :, None, None]
    y = jax.lax.conv_general_dilated(
        x,
        jnp.tile(kernel, (1, 1, 1, channels)),
        window_strides=(1, 1),
        padding=((size - 1, size - 1), (size - 1, size - 1)),
        lhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
        feature_group_count=channels,
    )
    return y[:, offset : offset + crop[0], offset : offset + crop[1]]


def _windows(x, kernel, *, stride, padding, start, combine) -> jax.Array:
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    window, strides = (1, kernel, kernel, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, start, combine, window, strides, edges)


def plain_max_pool(x, kernel, *, stride, padding=0) -> jax.Array:
    """`pool.max_pool` with ``lax.reduce_window``."""
    return _windows(
        x, kernel, stride=stride, padding=padding, start=-jnp.inf, combine=jax.lax.max
    )


def plain_avg_pool(x, kernel, *, stride, padding=0) -> jax.Array:
    """`pool.avg_pool` with ``lax.reduce_window``."""
    total = _windows(
        x, kernel, stride=stride, padding=padding, start=0.0, combine=jax.lax.add
    )
    return total / kernel**2


class Operator(NamedTuple):
    """An operator as some network uses it."""

    ours: Callable
    plain: Callable
    shapes: tuple[tuple[int, ...], ...]  # of the map, and of the kernel if it has one
    options: Mapping[str, Any] = {}


_conv2d = functools.partial(Operator, conv.conv2d, plain_conv2d)
_up = functools.partial(Operator, conv.conv_transpose, plain_conv_transpose)
_max = functools.partial(Operator, pool.max_pool, plain_max_pool)
_avg = functools.partial(Operator, pool.avg_pool, plain_avg_pool)
_SAME = dict(padding=1)

OPERATORS = {
    "conv 1x1": _conv2d(((1, 64, 64, 256), (1, 1, 256, 128))),
    "conv 1x1, stride 2": _conv2d(((1, 64, 64, 256), (1, 1, 256, 512)), dict(stride=2)),
    "conv 3x3, 3 channels": _conv2d(((1, 224, 224, 3), (3, 3, 3, 64)), _SAME),
    "conv 3x3, 64 channels": _conv2d(((1, 112, 112, 64), (3, 3, 64, 64)), _SAME),
    "conv 3x3, 128 channels": _conv2d(((1, 60, 60, 128), (3, 3, 128, 128)), _SAME),
    "conv 3x3, 256 channels": _conv2d(((1, 64, 64, 256), (3, 3, 256, 256)), _SAME),
    "conv 3x3, 512 channels": _conv2d(((1, 28, 28, 512), (3, 3, 512, 512)), _SAME),
    "conv 3x3 of 8x8, 1024 channels": _conv2d(((1, 8, 8, 1024), (3, 3, 1024, 1024))),
    "conv 3x3, batch 8": _conv2d(((8, 32, 32, 64), (3, 3, 64, 64)), _SAME),
    "conv 3x3, stride 2": _conv2d(
        ((1, 64, 64, 128), (3, 3, 128, 128)), dict(stride=2, padding=1)
    ),
    "conv 3x3, rate 2": _conv2d(
        ((1, 60, 60, 256), (3, 3, 256, 256)), dict(dilation=2, padding=2)
    ),
    "conv 3x3, rate 4": _conv2d(
        ((1, 60, 60, 256), (3, 3, 256, 256)), dict(dilation=4, padding=4)
    ),
    "conv 3x3, rate 12": _conv2d(
        ((1, 28, 28, 512), (3, 3, 512, 512)), dict(dilation=12, padding=12)
    ),
    "conv 7x7, stride 2, 3 channels": _conv2d(
        ((1, 224, 224, 3), (7, 7, 3, 64)), dict(stride=2, padding=3)
    ),
    "conv 5x5, 2 groups": _conv2d(
        ((1, 27, 27, 96), (5, 5, 48, 256)), dict(padding=2, groups=2)
    ),
    "fc6 7x7 of 16x16": _conv2d(((1, 16, 16, 512), (7, 7, 512, 1024))),
    "fc6 7x7 of 40x40, rate 4": _conv2d(
        ((1, 40, 40, 512), (7, 7, 512, 512)), dict(dilation=4)
    ),
    "fc6 4x4 of 28x28, rate 4": _conv2d(
        ((1, 28, 28, 512), (4, 4, 512, 1024)), dict(dilation=4)
    ),
    "fc6 7x7 of 7x7": _conv2d(((1, 7, 7, 512), (7, 7, 512, 1024))),
    "transposed 2x2, stride 2": _up(
        ((1, 56, 56, 256), (2, 2, 256, 128)), dict(stride=2)
    ),
    "transposed 3x3, stride 2": _up(
        ((1, 28, 28, 256), (3, 3, 256, 128)), dict(stride=2)
    ),
    "transposed 4x4, stride 2": _up(
        ((1, 28, 28, 128), (4, 4, 128, 64)), dict(stride=2, padding=1)
    ),
    "transposed 16x16, stride 8, 21 channels": _up(
        ((1, 28, 28, 21), (16, 16, 21, 21)), dict(stride=8)
    ),
    "transposed 7x7 of 1x1": _up(((1, 1, 1, 1024), (7, 7, 1024, 512)), dict(stride=1)),
    "bilinear 16x16, stride 8": Operator(
        conv.bilinear_upsample,
        plain_bilinear_upsample,
        ((1, 29, 29, 21),),
        dict(size=16, stride=8, offset=4, crop=(224, 224)),
    ),
    "max pool 2x2, stride 2": _max(((1, 112, 112, 128),), dict(kernel=2, stride=2)),
    "max pool 3x3, stride 2": _max(
        ((1, 112, 112, 64),), dict(kernel=3, stride=2, padding=1)
    ),
    "max pool 3x3": _max(((1, 28, 28, 512),), dict(kernel=3, stride=1, padding=1)),
    "average pool 3x3": _avg(((1, 28, 28, 512),), dict(kernel=3, stride=1, padding=1)),
    "average pool 7x7": _avg(((1, 14, 14, 1024),), dict(kernel=7, stride=1)),
}


_TIMES = measuring.struct(
    forward=measuring.SECONDS, gradients=measuring.SECONDS, compile=measuring.SECONDS
)
SCHEMA = measuring.struct(difference={"type": "number"}, ours=_TIMES, plain=_TIMES)


def measure(operator: Operator, repeats: int) -> dict:
    """Times of our and of the plain form.

    Returns:
      ``ours`` and ``plain``, each with the seconds of ``forward``, of ``gradients``
      (the output and the gradients of all inputs) and to ``compile`` the latter; and
      the largest ``difference`` of the two in the output or a gradient, relative to the
      largest value there.
    """
    rng = np.random.default_rng(0)

    def draw(shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    inputs = [draw(shape) for shape in operator.shapes]
    forms = {
        name: functools.partial(function, **operator.options)
        for name, function in (("ours", operator.ours), ("plain", operator.plain))
    }
    output = jax.eval_shape(forms["plain"], *inputs)
    cotangent = draw(output.shape)
    calls, seconds = {}, {}
    for name, form in forms.items():

        def gradients(cotangent, *inputs, form=form):
            y, pull = jax.vjp(form, *inputs)
            return y, *pull(cotangent)

        calls[name] = functools.partial(jax.jit(form), *inputs)
        compiled, seconds[name] = measuring.compile_timed(
            jax.jit(gradients), cotangent, *inputs
        )
        calls[f"{name} gradients"] = functools.partial(compiled, cotangent, *inputs)
    pairs = zip(calls["ours gradients"](), calls["plain gradients"]())
    difference = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)
    medians = measuring.in_turns(calls, repeats)
    return {"difference": difference} | {
        name: {
            "forward": medians[name],
            "gradients": medians[f"{name} gradients"],
            "compile": seconds[name],
        }
        for name in forms
    }


def rows(results: Mapping[str, dict]) -> tables.Rows:
    """One row per operator, times in milliseconds as ours / plain."""
    titles = "operator, map, kernel, forward ms, with gradients ms, times as fast, "
    titles += "compile s"
    found = [tuple(titles.split(", "))]
    for name in sorted(results, key=list(OPERATORS).index):
        ours, plain = results[name]["ours"], results[name]["plain"]
        shapes = ["x".join(map(str, shape)) for shape in OPERATORS[name].shapes]
        milliseconds = [
            f"{1e3 * ours[key]:.2f} / {1e3 * plain[key]:.2f}"
            for key in ("forward", "gradients")
        ]
        found.append(
            (
                name,
                shapes[0],
                shapes[1] if len(shapes) > 1 else "-",
                *milliseconds,
                f"{plain['gradients'] / ours['gradients']:.2f}",
                f"{ours['compile']:.1f} / {plain['compile']:.1f}",
            )
        )
    return found


_MARKDOWN = """# Operator times

Written by `python -m experiments.benchmarks.operators --repeats={repeats}
--markdown=docs/op_times.md`: every operator as segjax.ops writes it / as one operation
of jax.lax, in turns. `--operators=NAME --json=FILE` measures it in pieces.

{device}, {host_cores} host cores; Python {python}, jax {jax}, jaxlib {jaxlib}; float32.

{table}

*With gradients*: output and gradients of all inputs. *Times as fast*: the ratio of the
two times with gradients. Both forms give the same results to float32 rounding; only a
maximum that several values of a window share sends its gradient elsewhere.
"""


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    names = values.operators or list(OPERATORS)
    for name in names:
        if name not in OPERATORS:
            raise errors.unknown("--operators", name, OPERATORS)
    outputs = measuring.output_files(values)
    cli.start()
    jax.config.update("jax_enable_compilation_cache", False)
    where = measuring.conditions(repeats=values.repeats)
    results = measuring.load(outputs.get("json"), where, schema=SCHEMA, names=OPERATORS)
    for count, name in enumerate(names, start=1):
        cli.log(f"[{count}/{len(names)}] {name}")
        results[name] = measure(OPERATORS[name], values.repeats)
        if "json" in outputs:
            measuring.save(outputs["json"], where, results)
    print(tables.text_table(rows(results)))
    if "markdown" in outputs:
        table = tables.markdown_table(rows(results))
        files.write_text(outputs["markdown"], _MARKDOWN.format(table=table, **where))
        print(f"written to {outputs['markdown']}")
    wrong = [name for name in results if not results[name]["difference"] < 1e-4]
    if wrong:
        cli.log(f"error: the two forms differ for {'; '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    flags.DEFINE_multi_string("operators", [], "One of OPERATORS; may be repeated.")
    flags.DEFINE_integer("repeats", 9, "The median counts.", lower_bound=1)
    flags.DEFINE_string("json", "", "File of results, read and added to.")
    flags.DEFINE_string("markdown", "", "File for the table of all results.")
    cli.run(main)
