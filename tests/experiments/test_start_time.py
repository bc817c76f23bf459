"""Programs answer --help without the libraries that take long to import."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in ROOT.glob("experiments/**/*.py")
    if "    cli.run(" in path.read_text()
)
SLOW = {
    *("grain", "matplotlib", "orbax", "pandas", "pycocotools", "safetensors", "scipy"),
    *("skimage", "tensorboardX", "tensorflow", "tensorflow_datasets", "tensorstore"),
    *("tifffile", "torch"),
}

# Modules are counted, not seconds. One process imports what all programs share; what is
# added to it is imported in forks: one for the whole library, one for each program.
CODE = f"""
import contextlib, importlib, io, os, pkgutil, runpy, sys
import segjax
from experiments.shared import cli

def all_modules():
    for module in pkgutil.walk_packages(segjax.__path__, "segjax."):
        if module.name != "segjax.data.builder":  # derives from a class of TFDS
            importlib.import_module(module.name)

def show_help(program):
    sys.argv = [program, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_module(program, run_name="__main__", alter_sys=True)

for name in {["segjax", *PROGRAMS]}:
    if os.fork():
        os.wait()
        continue
    all_modules() if name == "segjax" else show_help(name)
    print(name, *sorted({SLOW} & sys.modules.keys()), flush=True)
    os._exit(0)
"""


def test_help_imports_nothing_that_takes_long():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.stdout.splitlines() == ["segjax", *PROGRAMS], result.stderr
    assert {"experiments.train", "experiments.tour", "experiments.sweep"} < {*PROGRAMS}
