"""What all programs share: flags, one-line errors, processes and devices."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from segjax import compilation, config
from segjax.errors import UserError

_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Join the other processes of the job: 'auto' does when the environment shows a "
    "multi-process job (SLURM, Open MPI, a TPU pod) or --coordinator is given; 'on' "
    "always does and finds the others without further flags where the platform "
    "provides them.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where the platform does not tell."
)
_PROCESSES = flags.DEFINE_integer("num_processes", 0, "With --coordinator.")
_PROCESS = flags.DEFINE_integer("process_id", -1, "With --coordinator; from 0.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/segjax/compiled",
    "Folder of compiled programs, reused by later runs; '' switches it off.",
)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """``app.run`` that prints bad input as one line and exits with 2."""
    _set_up_logging()
    try:
        app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)
    except UserError as error:
        _fail(error)


def _set_up_logging() -> None:
    """Our own messages plainly on stderr; nothing of what libraries tell."""
    ours = logging.getLogger("segjax")
    ours.addHandler(logging.StreamHandler())
    ours.setLevel(logging.INFO)
    ours.propagate = False
    # Orbax abandons its other reads when one file of a checkpoint is damaged; their
    # ends are reported here, after we have dealt with the first one.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable


def _report_unraisable(args) -> None:
    if str(args.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(args)


def _guarded(main: Callable, argv: Sequence[str]) -> int | None:
    try:
        return main(argv)
    except UserError as error:
        _fail(error)


def _fail(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    # Not sys.exit: other processes may wait in a collective that will never come.
    if jax.distributed.is_initialized():
        os._exit(2)
    sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # ml_collections: no such field
        text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
        raise UserError(f"unknown config key: {text.strip(chr(34))}") from error
    except (OSError, TypeError, ImportError) as error:
        raise UserError(f"--config: {' '.join(str(error).split())}") from error
    if len(rest) > 1 and any(arg.startswith("-") for arg in rest[1:]):
        raise UserError(f"unexpected argument {rest[1]!r}")
    return rest


def define_workdir_config() -> None:
    """Defines ``--workdir`` and ``--config.*`` overrides of the config saved there.

    The config must be known before the flags are parsed, so the workdir is looked up
    in ``sys.argv`` first.
    """
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    workdir = ""
    for i, arg in enumerate(sys.argv):
        name, equals, value = arg.lstrip("-").partition("=")
        if name == "workdir" and arg.startswith("-"):
            workdir = value if equals else (sys.argv[i + 1 : i + 2] or [""])[0]
    values = config.make()
    if workdir and not {"--help", "--helpfull", "--helpshort"} & set(sys.argv):
        try:
            values = config.load(Path(workdir).expanduser() / "config.json")
        except UserError as error:
            _fail(error)
    config_flags.DEFINE_config_dict("config", values)


def start() -> None:
    """Joins the other processes, switches the compilation cache on, says hello."""
    absl.logging.set_verbosity("error")  # orbax tells its whole story at INFO
    # Grain and orbax warn about internals that a user can do nothing about.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if _COORDINATOR.value:
        _check_coordinator()
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    elif _DISTRIBUTED.value == "on" or (
        _DISTRIBUTED.value == "auto" and _in_multi_process_job()
    ):
        try:
            jax.distributed.initialize()
        except Exception as error:
            raise UserError(
                "cannot join the other processes "
                f"({' '.join(str(error).split())[:200]}); give --coordinator, "
                "--num_processes and --process_id, or --distributed=off to run alone"
            ) from error
    if _CACHE.value:
        compilation.use_cache(_CACHE.value)
    devices = jax.local_devices()
    log(
        f"process {jax.process_index()}/{jax.process_count()}, "
        f"{len(devices)} of {jax.device_count()} devices: {devices[0].device_kind}",
        everywhere=True,
    )


def _check_coordinator() -> None:
    if not 0 <= _PROCESS.value < _PROCESSES.value:
        raise UserError(
            f"--coordinator needs --num_processes and --process_id below it; found "
            f"--num_processes={_PROCESSES.value} --process_id={_PROCESS.value}"
        )


def _in_multi_process_job() -> bool:
    env = os.environ
    return (
        int(env.get("SLURM_NTASKS", 1)) > 1
        and "SLURM_STEP_ID" in env  # inside srun, not just inside an allocation
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in env
        or "JAX_COORDINATOR_ADDRESS" in env
    )


def log(message: str, everywhere: bool = False) -> None:
    """One line on stderr, of process 0 unless ``everywhere``."""
    if everywhere or jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)
