"""Trains the stages of a recipe, each from the best checkpoint of the one before.

    python -m experiments.chain --config configs/fcn_camvid.py:fcn8s \\
        --workdir runs/fcn --config.data.root=/path/to/CamVid \\
        --config.init_from=weights/vgg16.safetensors

trains FCN-32s in runs/fcn/fcn32s, FCN-16s from it in runs/fcn/fcn16s and FCN-8s from
that in runs/fcn/fcn8s. The config file says what a variant starts from, in its table
STARTS_FROM; the variant behind the colon is the last stage.  Each stage is one run of
experiments.train, with the same files.

--config.init_from is of the first stage; all other --config.FIELD=VALUE hold for every
stage.  Before anything runs, every stage is checked and its training step traced.

The same command started again skips the stages that are finished and continues the one
that was interrupted.  --dry_run prints the commands of the stages.

Exit codes: 0 all stages finished, or were printed; otherwise that of the stage that
ended: 2 bad input; 3 training diverged; 75 stopped after saving: start again.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import absl.logging
import jax
from absl import flags
from ml_collections import config_flags

from experiments.shared import arguments, chains, cli, run_description
from experiments.shared.chains import Stage
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import config as config_lib
from segjax import files
from segjax import workdir as workdir_lib
from segjax.errors import UserError

# Flags of experiments.train that the stages get from this program.
PASSED_ON = (
    *("compilation_cache", "distributed", "coordinator", "num_processes"),
    "process_id",
)


def command(
    stage: Stage, workdir: Path, *, options: Sequence[str] = (), python: str = "python"
) -> list[str]:
    """What trains a stage."""
    return [
        *(python, "-m", "experiments.train", "--config", stage.config_file),
        *("--workdir", str(workdir / stage.name), *options),
        *(config_lib.flag(key, value) for key, value in stage.overrides.items()),
    ]


def chain(
    stages: Sequence[Stage], workdir: Path, *, options: Sequence[str] = ()
) -> int:
    """Trains the stages that are not finished; returns the exit code.

    Args:
      stages: from ``chains.read``.
      workdir: of the chain.
      options: flags that experiments.train gets besides the config's.

    Raises:
      UserError: a stage does not fit what is in its folder, or has a bad field.
    """
    finished = []
    for stage in stages:
        steps = _check(stage)
        folder = workdir / stage.name
        run_description.check_same_config(stage.config, folder)
        finished.append(sweep_runs.state(folder, steps).kind == "finished")
    for number, stage in enumerate(stages[1:], start=1):
        started = (workdir / stage.name / workdir_lib.CONFIG).exists()
        if started and not finished[number - 1]:
            raise UserError(
                f"{workdir / stage.name} has started from {stages[number - 1].name}, "
                "which this command would train further: use another --workdir, the "
                f"old number of steps, or remove {workdir / stage.name}"
            )
    for number, stage in enumerate(stages):
        place = f"stage {number + 1} of {len(stages)}, {stage.name}"
        if finished[number]:
            cli.log(f"{place}: finished before")
            continue
        cli.log(place)
        code = _run(command(stage, workdir, options=options, python=sys.executable))
        if code:
            cli.log(f"{place}: ended with exit code {code}")
            return code
    cli.log(f"all {len(stages)} stages finished; results in {workdir}")
    return 0


def _check(stage: Stage) -> int:
    """Traces the training step of a stage; returns its number of steps."""
    config = stage.config.copy_and_resolve_references()
    try:
        return sweep_rows.check_config(config, data=True).total_steps
    except (UserError, ValueError) as error:  # of networks: shapes that do not fit
        raise UserError(f"stage {stage.name}: {error}") from error


def _run(training: Sequence[str]) -> int:
    """Runs one stage, which gets the signals of this process; returns its exit code."""
    # Before the start, so that no signal falls in between.
    stopped: list[int] = []
    process: subprocess.Popen | None = None

    def forward(number: int, frame: object) -> None:
        del frame
        stopped.append(number)
        if process is not None:
            process.send_signal(number)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, forward) for number in signals}
    try:
        # A session of its own: Ctrl-C reaches it once, through this process.
        process = subprocess.Popen(training, start_new_session=True)
        for number in stopped:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code  # as a shell has it


def main(argv: Sequence[str]) -> int:
    del argv
    values = flags.FLAGS
    workdir = files.absolute(values.workdir)
    absl.logging.set_verbosity("fatal")
    # The devices belong to the stages; this process only looks at shapes.
    jax.config.update("jax_platforms", "cpu")
    given = config_lib.flatten(values.config)
    stages = chains.read(
        cli.flag_value("config"),
        {key: given[key] for key in arguments.given_fields()},
        workdir=str(workdir),
    )
    for note in stages[0].notes:
        cli.log(f"note: {note}")
    options = [
        f"--{name}={values[name].value}" for name in PASSED_ON if values[name].present
    ]
    if values.dry_run:
        for stage in stages:
            print(sweep_runs.shell(command(stage, workdir, options=options)))
        return 0
    return chain(stages, workdir, options=options)


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "FILE:VARIANT, the last stage: configs/fcn_camvid.py:fcn8s."
    )
    flags.DEFINE_string("workdir", None, "Of the chain; continues if it exists.")
    flags.DEFINE_bool("dry_run", False, "Print the commands of the stages.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
