"""Writes docs/speed.md from the times and plans in experiments/benchmarks/measured/.

    python -m experiments.benchmarks.against_torch \\
        --json=experiments/benchmarks/measured/against_torch.json
    python -m experiments.plan --config configs/unet_camvid.py:v5e_16 \\
        --topology v5e:4x4 --weak_scaling=unet.png \\
        --json=experiments/benchmarks/measured/plan_unet.json
    python -m experiments.benchmarks.speed_page

The first measures beside PyTorch, on a quiet machine; the second asks the TPU's
compiler, on any machine; PLANS lists the files of plans and their flags.

Exit codes: 0; 2 a file is damaged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.benchmarks import against_torch, measuring
from experiments.shared import cli
from segjax import files, tables
from segjax.errors import UserError

MEASURED = Path(__file__).parent / "measured"


class Plan(NamedTuple):
    """A file of ``experiments.plan --json``."""

    title: str
    config: str  # in configs/
    flags: str = ""  # beside the config


# Of the paper's form, which has no variant for pods.
_UNET = (
    "--config.augment.crop=572,572 --config.model.dtype=bfloat16 "
    "--config.batch_size=128"
)
PLANS = {
    "plan_pspnet50": Plan(
        "PSPNet-50, 353x473, conv5_4 on the levels, stem on pairs of pixels",
        "pspnet50_camvid.py:v5e_16",
    ),
    "plan_fcn8s_plain": Plan(
        "FCN-8s, 360x480",
        "fcn8s_camvid.py:v5e_16",
        "--config.model.framed=False --config.model.packed=False",
    ),
    "plan_fcn8s_framed": Plan(
        "FCN-8s, 360x480, padding once per batch",
        "fcn8s_camvid.py:v5e_16",
        "--config.model.packed=False",
    ),
    "plan_fcn8s": Plan(
        "FCN-8s, 360x480, padding once per batch, pairs of pixels",
        "fcn8s_camvid.py:v5e_16",
    ),
    "plan_unet_plain": Plan(
        "U-Net, 352x480",
        "unet_camvid.py:v5e_16",
        "--config.model.packed=False",
    ),
    "plan_unet": Plan("U-Net, 352x480, pairs of pixels", "unet_camvid.py:v5e_16"),
    "plan_unet572_plain": Plan("U-Net, 572x572, unpadded", "unet_isbi2012.py", _UNET),
    "plan_unet572": Plan(
        "U-Net, 572x572, unpadded, pairs of pixels",
        "unet_isbi2012.py",
        f"{_UNET} --config.model.packed=True",
    ),
}
# Of the table of plans: (slice, number of slices).
SLICES = (("4x4", 1), ("8x8", 1), ("16x16", 1), ("8x8", 2))
_PLAN = {
    "type": "object",
    "required": [""],
    "properties": {
        "": {
            "type": "object",
            "required": [
                "needed_gib",
                "seconds",
                "utilisation",
                "collectives",
                "weak_scaling",
                "memory_seconds",
            ],
        }
    },
}
_HEAD = """# Speed

`python -m experiments.benchmarks.speed_page` writes this page from the files in
[experiments/benchmarks/measured](../experiments/benchmarks/measured).
[benchmark.md](benchmark.md) says what makes the difference, and what did not help.

## Beside PyTorch, on a CPU

```
python -m experiments.benchmarks.against_torch \\
    --json=experiments/benchmarks/measured/against_torch.json
```

Each network here and in PyTorch (eager, channels_last), float32, in turns in one
process: the median over the rounds of PyTorch's time over ours. Above 1, ours is
faster.
"""
_TPU = """
## The TPU compiler's estimates

```
python -m experiments.plan --config configs/unet_camvid.py:v5e_16 --topology v5e:4x4 \\
    --weak_scaling=unet.png --json=experiments/benchmarks/measured/plan_unet.json
```

Training steps for TPU v5e, 8 images per chip, bfloat16 ([plan.md](plan.md) explains
the numbers; nothing has run on a TPU). The share is that of the chip's peak, by the
FLOPs of the form that the paper writes down, so that fewer operations for the same
numbers raise it. Images/s are without overlap of collectives, at 16, 64 and 256 chips
and on two slices of 64. Compiled by libtpu 0.0.52;
[benchmark.md](benchmark.md#forms-for-tpus) says by which forms.

"""


def _torch_table(path: Path) -> str:
    what = "the times of experiments.benchmarks.against_torch"
    values = files.read_json(path, what, measuring.SCHEMA)
    for name, result in values["results"].items():
        files.check_json(
            result,
            path=path,
            what=f"the times of {name}",
            schema=against_torch.SCHEMA,
        )
    where = values["conditions"]
    said = ", ".join(f"{key} {value}" for key, value in where.items())
    table = tables.markdown_table(against_torch.rows(values["results"]))
    return f"\n{table}\n\nConditions: {said}.\n"


def plan_row(plan: Plan, numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of a plan: memory, time and share of a step, images/s of slices.

    Raises:
      UserError: its weak scaling lacks one of :data:`SLICES`.
    """
    by_slice = {
        (row["topology"], row["slices"]): row for row in numbers["weak_scaling"]
    }
    if missing := [key for key in SLICES if key not in by_slice]:
        raise UserError(f"the plan of {plan.title} has no slices {missing}")
    count, size = numbers["collectives"]["all-reduce"]
    return (
        plan.title,
        f"{1e3 * numbers['seconds']:.1f} ms",
        f"{100 * numbers['utilisation']:.1f} %",
        f"{numbers['needed_gib']:.2f} GiB",
        f"{1e3 * numbers['memory_seconds']:.1f} ms",
        f"{count} times, {size / 1e6:.1f} MB",
        ", ".join(f"{by_slice[key]['images_without_overlap']:,.0f}" for key in SLICES),
    )


def page(folder: Path) -> str:
    """The text of docs/speed.md.

    Raises:
      UserError: a file is damaged.
    """
    titles = "network, step, share of the peak, memory, memory traffic, all-reduces"
    rows: list[tuple[str, ...]] = [(*titles.split(", "), "images/s")]
    commands = []
    for stem, plan in PLANS.items():
        path = folder / f"{stem}.json"
        if path.is_file():
            values = files.read_json(path, "the plan of experiments.plan", _PLAN)
            rows.append(plan_row(plan, values[""]))
            options = f" with `{plan.flags}`" if plan.flags else ""
            commands.append(f"* {plan.title}: `configs/{plan.config}`{options}")
    return (
        _HEAD
        + _torch_table(folder / "against_torch.json")
        + _TPU
        + tables.markdown_table(rows)
        + "\n\n"
        + "\n".join(commands)
        + "\n"
    )


def main(argv) -> int:
    del argv
    output = Path(flags.FLAGS.output).expanduser()
    files.write_text(output, page(MEASURED))
    print("written:", output)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("output", "docs/speed.md", "The page.")
    cli.run(main)
