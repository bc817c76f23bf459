"""Who may import whom: imports point one way, ops <- models <- ... <- experiments."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("segjax/**/*.py"))

# What everything may import: errors, files here and in buckets, the void label, tables
# of text.
BASE = (
    "segjax.errors",
    "segjax.buckets",
    "segjax.bucket_mirror",
    "segjax.files",
    "segjax.labels",
    "segjax.image_stats",
    "segjax.tables",
)

# What each part may import of segjax, besides itself and BASE.
ALLOWED = {
    "segjax/errors.py": (),
    "segjax/buckets.py": (),
    "segjax/bucket_mirror.py": (),
    "segjax/files.py": (),
    "segjax/bucket_lock.py": (),
    "segjax/line_file.py": (),
    "segjax/labels.py": (),
    "segjax/tables.py": (),
    "segjax/image_stats.py": (),
    "segjax/ops": (),
    "segjax/models": ("segjax.ops",),
    "segjax/analysis": ("segjax.ops", "segjax.models", "segjax.published"),
    "segjax/proposals": (),
    "segjax/data": ("segjax.proposals",),
    "segjax/weak": ("segjax.ops", "segjax.data"),
    "segjax/published.py": (),
    "segjax/published_scores.py": (),
    "segjax/weights": (),
    "segjax/config.py": (
        *("segjax.models", "segjax.config_fields", "segjax.losses", "segjax.weak"),
        "segjax.config_ranges",
    ),
    "segjax/config_ranges.py": (),
    "segjax/config_data_fields.py": (
        *("segjax.config_ranges", "segjax.data", "segjax.proposals", "segjax.weak"),
    ),
    "segjax/config_fields.py": (
        *("segjax.config_ranges", "segjax.config_data_fields"),
        *("segjax.compilation", "segjax.losses", "segjax.optim", "segjax.ops"),
        *("segjax.data", "segjax.weak", "segjax.sharding"),
    ),
    "segjax/workdir.py": ("segjax.data", "segjax.bucket_lock"),
    "segjax/losses.py": (),
    "segjax/metrics.py": ("segjax.ops",),
    "segjax/scoring": (),
    "segjax/optim.py": (),
    "segjax/sharding.py": (),
    "segjax/compilation.py": (),
    "segjax/checkpoint_scores.py": ("segjax.workdir",),
    "segjax/checkpoint.py": ("segjax.training", "segjax.checkpoint_scores"),
    "segjax/recalibration.py": ("segjax.sharding",),
    "segjax/writer.py": ("segjax.workdir", "segjax.line_file"),
    "segjax/viz.py": (),
    "segjax/heatmaps.py": ("segjax.viz",),
    "segjax/training.py": (
        *("segjax.ops", "segjax.models", "segjax.losses", "segjax.weak"),
    ),
    "segjax/inference": (
        *("segjax.ops", "segjax.models", "segjax.data", "segjax.config"),
        "segjax.proposals",
        *("segjax.checkpoint", "segjax.checkpoint_scores"),
        *("segjax.sharding", "segjax.workdir"),
        *("segjax.config_fields", "segjax.compilation"),
    ),
    "segjax/evaluators.py": (
        *("segjax.ops", "segjax.metrics", "segjax.sharding", "segjax.inference"),
    ),
}


def imports(path: Path) -> set[str]:
    """All modules a file imports, also inside functions: ``segjax.data.scenes``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # "from segjax import models" imports the module segjax.models.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of(modules: set[str], *packages: str) -> set[str]:
    return {m for m in modules if any(f"{m}.".startswith(f"{p}.") for p in packages)}


def part(path: Path) -> str:
    """``segjax/ops`` for the files of a package, otherwise the file."""
    relative = path.relative_to(ROOT)
    return "/".join(relative.parts[:2])


def test_the_walk_sees_imports():
    assert of(imports(ROOT / "segjax/checkpoint.py"), "orbax")
    assert "segjax.models" in imports(ROOT / "segjax/config.py")
    lazy = imports(ROOT / "segjax/data/records.py")
    assert "tensorflow_datasets" in lazy
    assert "segjax.data.datasets.camvid" in imports(
        ROOT / "segjax/data/datasets/__init__.py"
    )
    assert {part(path) for path in FILES} - {"segjax/__init__.py"} == ALLOWED.keys()


@pytest.mark.parametrize("name", ALLOWED)
def test_a_part_imports_only_what_lies_below(name):
    own = name.removesuffix(".py").replace("/", ".")
    allowed = (own, *BASE, *ALLOWED[name])
    for path in FILES:
        if part(path) == name:
            ours = of(imports(path), "segjax")
            assert ours == of(ours, *allowed), path


def test_models_and_ops_need_only_jax_and_flax():
    for path in FILES:
        if part(path) in ("segjax/models", "segjax/ops"):
            found = imports(path)
            known = ("flax", "jax", "numpy", "segjax", *sys.stdlib_module_names)
            assert found == of(found, *known), path
        if part(path) == "segjax/ops":
            assert not of(imports(path), "flax"), path


def test_data_is_read_and_scored_without_jax():
    for path in FILES:
        if part(path) in ("segjax/data", "segjax/proposals", "segjax/scoring"):
            assert not of(imports(path), "jax", "flax", "optax", "orbax"), path


def test_only_checkpoint_imports_orbax():
    users = {path.name for path in FILES if of(imports(path), "orbax")}
    assert users == {"checkpoint.py"}


def test_the_library_knows_neither_programs_nor_configs_nor_flags():
    for path in FILES:
        outside = of(imports(path), "experiments", "configs", "absl.flags", "absl.app")
        # Grain reads flags of its own in programs that parse none.
        grain = {"absl.flags"} if path.name == "workers.py" else set()
        assert outside == grain, path


def test_the_library_prints_nothing():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            prints = isinstance(called, ast.Name) and called.id == "print"
            assert not prints, f"{path}:{node.lineno}"
