"""What all programs share: one-line errors, exit codes, processes and devices."""

import contextlib
import errno
import importlib.metadata
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from experiments.shared import arguments
from experiments.shared.arguments import flag_value
from segjax import buckets, compilation, config, files
from segjax.errors import Unavailable, UserError

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

UNEXPECTED, BAD_INPUT, INTERRUPTED = 1, 2, 130
LOST = 69  # EX_UNAVAILABLE: a device, a disk, the network or another process
_LOST_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL")
_LOST_ERRORS = (
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET),
    *(errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH),
)


def run(main: Callable[[Sequence[str]], int | None], positional: bool = False) -> None:
    """``app.run`` that prints bad input as one line and exits with 2.

    Args:
      main: gets the program's name and the arguments that are no flags.
      positional: whether there may be any of these.
    """
    _set_up_logging()
    _skip_absent_tpus()
    sys.argv = config.normalize_flags(arguments.config_first(sys.argv))
    try:
        app.run(
            lambda argv: _guarded(main, argv),
            flags_parser=lambda argv: arguments.parse(
                argv, positional=positional, common_flags=__name__
            ),
        )
    except UserError as error:
        _fail(error)


def _set_up_logging() -> None:
    """Messages of segjax go to stderr as they are; those of libraries are dropped."""
    logger = logging.getLogger("segjax")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # When one file of a checkpoint is damaged, orbax abandons its other reads, and
    # asyncio reports these after the damage has been dealt with.
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
        if told := buckets.explain(error):
            _fail(told)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(_first_reason(error))
        else:
            _crash(LOST if error.errno in _LOST_ERRORS else UNEXPECTED)
    except jax.errors.JaxRuntimeError as error:
        _crash(LOST if str(error).startswith(_LOST_STATUS) else UNEXPECTED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        _end(INTERRUPTED)
    except Exception as error:
        if told := buckets.explain(error):
            _fail(told)
        _crash(UNEXPECTED)


def _crash(code: int) -> NoReturn:
    """Ends with the traceback and a code that says whether starting again may help."""
    traceback.print_exc()
    _end(code)


def _end(code: int) -> NoReturn:
    """Ends without waiting for the other processes: they may wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


def _first_reason(error: OSError) -> UserError:
    """The first error on a full disk: closing the logs fails after the checkpoint."""
    reason: BaseException | None = error
    while reason and not isinstance(reason, UserError):
        reason = reason.__context__
    return reason or UserError(
        f"{error.strerror}: free some space and start the same command again"
    )


def _fail(error: Exception, code: int = BAD_INPUT) -> NoReturn:
    if isinstance(error, Unavailable):
        code = LOST
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    # While libraries shut down they report consequences of this error, which would
    # scroll it away.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _end(code)


def define_workdir_config() -> None:
    """Defines ``--workdir`` and ``--config.*`` overrides of the config saved there.

    The config must be known before the flags are parsed, so the workdir is looked up
    in ``sys.argv`` first.
    """
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    _set_up_logging()
    sys.argv = config.normalize_flags(sys.argv)
    values = config.make()
    workdir = flag_value("workdir")
    if not arguments.wants_help(sys.argv):
        try:
            if flag_value("config"):
                raise UserError(
                    "--config: the config of the run is read from --workdir; override "
                    "its fields with --config.FIELD=VALUE"
                )
            if workdir:
                with buckets.errors(workdir):
                    values = config.load(files.path(workdir) / "config.json")
                arguments.check_overrides(values)
        except UserError as error:
            _fail(error)
    config_flags.DEFINE_config_dict("config", values)


def define_common_overrides() -> None:
    """Defines ``--config.*`` overrides of the configs of several runs."""
    _set_up_logging()
    sys.argv = config.normalize_flags(sys.argv)
    values = config.make()
    try:
        if flag_value("config"):
            raise UserError(
                "--config: the configs are read from the workdirs; override fields of "
                "all of them with --config.FIELD=VALUE"
            )
        if not arguments.wants_help(sys.argv):
            arguments.check_overrides(values)
    except UserError as error:
        _fail(error)
    config_flags.DEFINE_config_dict("config", values)


def start(trains: bool = False) -> None:
    """Joins the other processes, opens the compilation cache, logs the devices.

    Args:
      trains: SIGTERM is left to ``stop_signal``; otherwise it ends this process.
    """
    # Orbax logs every operation, and errors as tracebacks before it raises them.
    absl.logging.set_verbosity("fatal")
    # Grain and orbax warn about internals that a user can do nothing about.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if _COORDINATOR.value:
        _check_coordinator()
        _join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    elif _DISTRIBUTED.value == "on" or (
        _DISTRIBUTED.value == "auto" and _in_multi_process_job()
    ):
        _join()
    _set_sigterm(trains)
    _open_cache(_CACHE.value)
    devices = jax.local_devices()
    log(
        f"process {jax.process_index()}/{jax.process_count()}, "
        f"{len(devices)} of {jax.device_count()} devices: {devices[0].device_kind}",
        everywhere=True,
    )


def _set_sigterm(trains: bool) -> None:
    """Lets SIGTERM end this process, unless several will agree on when to save."""
    if jax.distributed.is_initialized() and not (trains and jax.process_count() > 1):
        # The handler of the runtime only takes notice of it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _open_cache(folder: str) -> None:
    """Compiled programs are kept where possible; every program works without."""
    try:
        if folder:
            compilation.use_cache(folder)
    except (OSError, RuntimeError) as error:  # no home folder, or a read-only one
        reason = getattr(error, "strerror", None) or error
        log(f"--compilation_cache={folder}: {reason}; compiled programs are not kept")


def _skip_absent_tpus() -> None:
    """Keeps jax from trying libtpu, which prints errors, where there are no TPUs.

    Importing jax has chosen "tpu,cpu" if it found TPU chips. Plugins, such as that for
    NVIDIA GPUs, are left to jax.
    """
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if (
        not jax.config.jax_platforms
        and importlib.util.find_spec("libtpu")
        and not (plugins or importlib.util.find_spec("jax_plugins"))
    ):
        jax.config.update("jax_platforms", "cpu")


# A process that has lost its network or its machine is missed after so long.
_HEARTBEAT_SECONDS = 25
_JOIN_SECONDS = 600  # until all processes have come: some hosts are slower to start
_REMIND_SECONDS = 60
# For the last process: where each has work of its own, the first ones would end it.
_SHUTDOWN_SECONDS = 30 * 24 * 3600


def _join(*coordinator: str | int) -> None:
    try:
        with _wait_for_others():
            jax.distributed.initialize(
                *coordinator,
                initialization_timeout=2 * _JOIN_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
    except Exception as error:
        # One that starts late has not been found; otherwise the flags are wrong.
        late = isinstance(error, jax.errors.JaxRuntimeError)
        told = UserError(
            "cannot join the other processes "
            f"({' '.join(str(error).split())[:200]}); give --coordinator, "
            "--num_processes and --process_id, or --distributed=off to run alone"
        )
        _fail(told, LOST if late else BAD_INPUT)


@contextlib.contextmanager
def _wait_for_others() -> Iterator[None]:
    """Says that it waits, and ends after a while: the runtime would abort, unheard."""
    joined = threading.Event()

    def watch() -> None:
        for seconds in range(0, _JOIN_SECONDS, _REMIND_SECONDS):
            if seconds:
                text = f"waiting for the other processes for {seconds} s ..."
                log(text, everywhere=True)
            if joined.wait(min(_REMIND_SECONDS, _JOIN_SECONDS - seconds)):
                return
        print(
            f"error: after {_JOIN_SECONDS} s some processes of this job are not there; "
            "their own output says why; start the same command again on all hosts, or "
            "with --distributed=off to run alone",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _check_coordinator() -> None:
    if not 0 <= _PROCESS.value < _PROCESSES.value:
        raise UserError(
            f"--coordinator needs --num_processes and --process_id below it; found "
            f"--num_processes={_PROCESSES.value} --process_id={_PROCESS.value}"
        )


def _in_multi_process_job() -> bool:
    env = os.environ

    def several(name: str) -> bool:
        return env.get(name, "").isdigit() and int(env[name]) > 1

    return (
        several("SLURM_NTASKS")
        and "SLURM_STEP_ID" in env  # inside srun, not just inside an allocation
        or several("OMPI_COMM_WORLD_SIZE")
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in env
        or "JAX_COORDINATOR_ADDRESS" in env
    )


@contextlib.contextmanager
def working(message: str, every: float = 60.0) -> Iterator[None]:
    """Logs what takes long, and once a minute for how long it has been going on."""
    log(f"{message} ...")
    began, ended = time.monotonic(), threading.Event()

    def report() -> None:
        while not ended.wait(every):
            log(f"{message} for {(time.monotonic() - began) / 60:.0f} min ...")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def log(message: str, everywhere: bool = False) -> None:
    """One line on stderr, of process 0 unless ``everywhere``."""
    if everywhere or jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def make_folder(folder: Path, flag: str = "--output") -> None:
    """Makes the folder that a flag gives, with its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder}: {error.strerror}") from error
