"""What all programs share: flags, one-line errors, processes and devices."""

import difflib
import errno
import logging
import os
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import absl.logging
import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

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


def run(main: Callable[[Sequence[str]], int | None], arguments: bool = False) -> None:
    """``app.run`` that prints bad input as one line and exits with 2.

    Args:
      main: gets the program's name and the arguments that are no flags.
      arguments: whether there may be any.
    """
    _set_up_logging()
    try:
        app.run(
            lambda argv: _guarded(main, argv),
            flags_parser=lambda argv: _parse(argv, arguments),
        )
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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(_first_reason(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


def _first_reason(error: OSError) -> UserError:
    """On a full disk, closing the logs fails too, after the checkpoint that said so."""
    reason: BaseException | None = error
    while reason and not isinstance(reason, UserError):
        reason = reason.__context__
    return reason or UserError(
        f"{error.strerror}: free some space and start the same command again"
    )


def _fail(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    # What libraries report while they end follows from this error and would hide it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Not sys.exit: other processes may wait in a collective that will never come.
    if jax.distributed.is_initialized():
        os._exit(2)
    sys.exit(2)


def _parse(argv: Sequence[str], arguments: bool) -> list[str]:
    if _wants_help(argv):
        ours = flags.FLAGS.flags_by_module_dict()[__name__]
        for flag in (flag for flag in ours if flag.name != "config"):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    if path := flag_value("config"):
        _check_overrides(_run_config_file(path))
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from error
    except flags.Error as error:
        text = " ".join(str(error).split())
        if missing := re.findall(r"Flag (--\w+) must have a value", text):
            text = f"{' and '.join(missing)} must be given; --help explains"
        raise UserError(text) from error
    if len(rest) > 1 and not arguments:
        raise UserError(
            f"unexpected argument {rest[1]!r}: flags are --NAME=VALUE, and values of "
            "several numbers are joined by commas without spaces"
        )
    return rest


def _wants_help(argv: Sequence[str]) -> bool:
    return not {"-h", "--help", "--helpshort"}.isdisjoint(argv)


def flag_value(name: str) -> str:
    """The value of ``--name`` in ``sys.argv``, before flags are parsed, or ""."""
    found = ""
    for arg, following in zip(sys.argv, [*sys.argv[1:], ""]):
        if re.fullmatch(f"--?{name}(=.*)?", arg):
            found = arg.partition("=")[2] if "=" in arg else following
    return found


def _unknown_flag(name: str) -> str:
    head, dot, rest = name.partition(".")
    near = difflib.get_close_matches(head, list(flags.FLAGS), 1)
    hint = f"did you mean --{near[0]}{dot}{rest}?" if near else "--help lists them all"
    return f"unknown flag --{name}; {hint}"


def _run_config_file(argument: str) -> ConfigDict:
    """The config of ``FILE[:ARG]``; whatever is wrong with the file is a UserError.

    ml_collections runs the file again, and would report its errors in many lines or
    only when the config is used.
    """
    path, _, arg = argument.partition(":")
    if not Path(path).is_file():
        beside = Path(path).parent
        known = ", ".join(sorted(file.name for file in beside.glob("*.py")))
        raise UserError(
            f"--config {path}: no such file; {beside} holds {known or 'no configs'}"
        )
    try:
        values = runpy.run_path(path)
        if "get_config" not in values:
            raise UserError("defines no get_config()")
        values = values["get_config"](*[arg] if arg else [])
        if not isinstance(values, ConfigDict):
            raise UserError("get_config() must return what segjax.config.make returns")
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    except Exception as error:  # the file is code: anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(
            f"--config {path}: {where}{type(error).__name__}: {error}"
        ) from error
    return values


def _check_overrides(values: ConfigDict) -> None:
    """Raises UserError unless each ``--config.A.B`` of the command line is a field."""
    given = set()
    for arg in sys.argv[1:]:
        match = re.match(r"--?(?:no)?(config\.[^=\[]+)", arg)
        if not match:
            continue
        path, where, value = match[1], "config", values
        for key in path.split(".")[1:]:
            if not isinstance(value, ConfigDict):
                raise UserError(f"--{path}: '{where}' is a value and has no fields")
            if key not in value:
                raise UserError(_unknown_field(path, f"{where}.{key}", value, values))
            where, value = f"{where}.{key}", value[key]
        if isinstance(value, ConfigDict):
            raise UserError(
                f"--{path} is a group of fields; set one of them, such as "
                f"--{path}.{next(iter(value))}=VALUE"
            )
        if isinstance(value, tuple) and path in given:
            raise UserError(f"--{path} is given twice; its values would be joined")
        given.add(path)


def _unknown_field(
    path: str, unknown: str, group: ConfigDict, values: ConfigDict
) -> str:
    """One line: fields of that name elsewhere, or the nearest beside it."""
    name = "." + path.rpartition(".")[2]
    elsewhere = [field for field in _fields(values) if field.endswith(name)]
    if elsewhere:
        hint = " or ".join(f"'{field}'" for field in elsewhere)
        return f"unknown config key '{path}'; did you mean {hint}?"
    return config.unknown_key(unknown, group)


def _fields(values: ConfigDict, where: str = "config") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{where}.{key}")
        else:
            yield f"{where}.{key}"


def define_workdir_config() -> None:
    """Defines ``--workdir`` and ``--config.*`` overrides of the config saved there.

    The config must be known before the flags are parsed, so the workdir is looked up
    in ``sys.argv`` first.
    """
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    values = config.make()
    workdir = flag_value("workdir")
    if workdir and not _wants_help(sys.argv):
        try:
            if flag_value("config"):
                raise UserError(
                    "--config: the config of the run is read from --workdir; override "
                    "its fields with --config.FIELD=VALUE"
                )
            values = config.load(Path(workdir).expanduser() / "config.json")
            _check_overrides(values)
        except UserError as error:
            _fail(error)
    config_flags.DEFINE_config_dict("config", values)


def start() -> None:
    """Joins the other processes, switches the compilation cache on, says hello."""
    # Orbax tells its whole story at INFO, and errors as tracebacks before raising them.
    absl.logging.set_verbosity("fatal")
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
