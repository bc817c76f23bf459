"""What every engine starts: one worker command, the same on every host."""

import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from experiments.launch import tpus
from segjax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
MOUNTS = "/gcs"  # where mounted buckets are: gs://B/x is /gcs/B/x
# The exit codes of experiments.train that a restart cannot cure: an exception that
# nobody expected, such as an ImportError; bad input; a loss that is not finite.
FATAL = (1, 2, 3)
# Those that it may cure: lost (experiments.shared.cli), stopped after saving, and
# processes that were ended by SIGABRT, SIGKILL, SIGSEGV or SIGTERM.
CURABLE = (69, 75, 134, 137, 139, 143)
GRACE_SECONDS = 120  # from SIGTERM to SIGKILL: to finish a step and to save
# Spot nodes of GKE give pods 15 s unless their node pool asks for more
# (docs.cloud.google.com/kubernetes-engine/docs/concepts/spot-vms).
SPOT_GRACE_SECONDS = 15
_NAME_LENGTH = 40  # names of pods add "-slice-0-15-xxxxx" and may have 63 characters
_PASSED_ON = r"--?(compilation_cache|(?:no)?config(?:\.[^=]+)?)(?:=(.*))?"


class Job(NamedTuple):
    """One training run, on all its hosts."""

    name: str  # letters, digits and dashes: names of pods and machines begin with it
    command: tuple[str, ...]  # of every host, in the folder of the code
    buckets: tuple[str, ...]  # to be mounted
    slice: tpus.Slice | None  # None: no TPU
    slices: int
    spot: bool  # machines that may be taken away at any time, for less money
    max_restarts: int
    environment: tuple[tuple[str, str], ...] = ()  # further variables of the workers

    def shell(self) -> str:
        """The command as one line of a shell."""
        return shlex.join(self.command)


def worker_command(
    arguments: Sequence[str],
    workdir: str,
    extra: Sequence[str] = (),
    program: str = "experiments.train",
    *,
    mount: bool = False,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training command for the arguments ``--config ...`` of a launch.

    Args:
      arguments: of this program; those of training are passed on.
      workdir: a path of the workers or gs://BUCKET/FOLDER.
      extra: further arguments of the worker.
      program: of the workers; experiments.chain has the same flags and exit codes.
      mount: whether the workers find buckets as folders, below MOUNTS.

    Returns:
      The command; the buckets that are to be mounted.

    Raises:
      UserError: the config file is not one of this checkout.
    """
    chosen = []
    for argument, following in zip(arguments, [*arguments[1:], "--"]):
        match = re.fullmatch(_PASSED_ON, argument)
        if not match:
            continue
        name, value = match.groups()
        if value is None and not following.startswith("--"):
            value = following
        if name == "config":
            value = _inside(value)
        chosen.append(f"--{name}" if value is None else f"--{name}={value}")
    found: list[str] = []

    def mounted(text: str) -> str:
        if not mount:
            return text

        def replace(match: re.Match) -> str:
            found.append(match[1])
            return f"{MOUNTS}/{match[1]}"

        return re.sub(r"gs://([^/,]+)", replace, text)

    arguments = [*chosen, f"--workdir={workdir}", *extra]
    command = ("python", "-m", program, *map(mounted, arguments))
    return command, tuple(dict.fromkeys(found))


def _inside(config: str) -> str:
    """The path of a config file from the root of the code, with its argument."""
    path, colon, argument = config.partition(":")
    try:
        path = Path(path).resolve().relative_to(ROOT)
    except ValueError:
        raise UserError(
            f"--config {config}: the workers have the files of {ROOT}: put the config "
            "there, such as into configs/"
        ) from None
    return f"{path}{colon}{argument}"


def name_of(config: str, workdir: str) -> str:
    """A name for a run, the same whenever it is launched, and no other run's.

    It consists of the config file, the last folder of the workdir, and a hash of the
    workdir, because the workdirs of the rows of a sweep all end with seed0.
    """
    stem = Path(config.partition(":")[0]).stem
    text = f"{stem}-{Path(workdir).name}".lower()
    name = re.sub(r"[^a-z0-9]+", "-", text).strip("-")
    if not name[:1].isalpha():
        name = f"run-{name}".rstrip("-")
    code = hashlib.sha256(workdir.rstrip("/").encode()).hexdigest()[:6]
    return f"{name[: _NAME_LENGTH - 7].rstrip('-')}-{code}"


def check_name(name: str) -> None:
    """Raises UserError unless a name fits what the engines name after it."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or (
        len(name) > _NAME_LENGTH
    ):
        raise UserError(
            f"--job_name {name}: expected at most {_NAME_LENGTH} small letters, digits "
            "and dashes, a letter first and no dash last"
        )


def to_yaml(documents: Sequence[dict]) -> str:
    """One YAML file; text of several lines stays readable."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def run_tool(command: Sequence[str], text: str, needs: str = "") -> int:
    """Runs a program of the engine on a file of ``text``; its exit code.

    Args:
      command: to which the file is added.
      text: what is submitted.
      needs: the tool, where the command is a shell that calls it.

    Raises:
      UserError: it is not installed.
    """
    tool = needs or command[0]
    if not shutil.which(tool):
        raise UserError(
            f"{tool} not found: install it, or print what would be submitted with "
            "--dry_run"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return subprocess.run([*command, file.name], cwd=ROOT, check=False).returncode
