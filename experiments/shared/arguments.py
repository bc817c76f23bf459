"""The command line: ``--config FILE:ARG``, ``--config.FIELD=VALUE`` and other flags.

Whatever is wrong with it is one line that names the flag as it would be typed.
"""

import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from segjax import config as config_lib
from segjax import config_fields, errors
from segjax.errors import UserError


def parse(argv: Sequence[str], *, positional: bool, common_flags: str) -> list[str]:
    """Parses all flags; returns the program's name and the positional arguments.

    Args:
      argv: the command line, as ``config_first`` leaves it.
      positional: whether arguments that are no flags are allowed.
      common_flags: the module whose flags ``--help`` shows besides the program's own.

    Raises:
      UserError: an unknown flag, a bad value, or a config file that fails.
    """
    if wants_help(argv):
        for flag in flags.FLAGS.flags_by_module_dict()[common_flags]:
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
        if "config" in flags.FLAGS and flags.FLAGS["config"].default is not None:
            # The whole config would stand here; its fields follow below.
            flags.FLAGS["config"].help = "Overrides fields of the run's own config."
            flags.FLAGS["config"].default_as_str = None
        app.usage(shorthelp=True, writeto_stdout=True)
        if "config" in flags.FLAGS:
            print(config_fields.help_text())
        sys.exit(0)
    if path := flag_value("config"):
        config = run_config_file(path)
        if model_name := flag_value("config.model_name"):
            config_lib.set_model(config, model_name)
            _set_model_of_file(model_name)
        check_overrides(config)
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from error
    except flags.Error as error:
        text = " ".join(str(error).split())
        if missing := re.findall(r"Flag (--\w+) must have a value", text):
            text = f"{' and '.join(missing)} must be given; --help explains"
        raise UserError(text) from error
    if len(rest) > 1 and not positional:
        raise UserError(
            f"unexpected argument {rest[1]!r}: flags are --NAME=VALUE, and values of "
            "several numbers are joined by commas without spaces"
        )
    return rest


def _set_model_of_file(model_name: str) -> None:
    """Makes --config give a config of this network, before its fields are overridden.

    ml_collections knows the fields only of what the file returns.
    """
    parser = flags.FLAGS["config"].parser
    parse_file = parser.parse

    def parse(path: str) -> ConfigDict:
        config = parse_file(path)
        config_lib.set_model(config, model_name)
        return config

    parser.parse = parse


def config_first(argv: Sequence[str]) -> list[str]:
    """The command line with ``--config`` before all ``--config.FIELD=VALUE``.

    ml_collections knows the fields, and so their flags, only after the config file.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    first: list[str] = []
    others: list[str] = []
    words = iter(argv[1:end])
    for word in words:
        if re.fullmatch("--?config", word):
            first += [word, *([following] if (following := next(words, "")) else [])]
        elif re.match("--?config=", word):
            first.append(word)
        else:
            others.append(word)
    return [*argv[:1], *first, *others, *argv[end:]]


def wants_help(argv: Sequence[str]) -> bool:
    """Whether the command line asks for the flags instead of a run."""
    return not {"-h", "--help", "--helpshort"}.isdisjoint(argv)


def given_fields() -> list[str]:
    """The fields of the config that the command line, parsed, overrides."""
    return list(config_flags.get_override_values(flags.FLAGS["config"]))


def flag_value(name: str) -> str:
    """The value of ``--name`` in ``sys.argv``, before flags are parsed, or ""."""
    value = ""
    for arg, following in zip(sys.argv, [*sys.argv[1:], ""]):
        if re.fullmatch(f"--?{name}(=.*)?", arg):
            value = arg.partition("=")[2] if "=" in arg else following
    return value


def check_overrides(config: ConfigDict) -> None:
    """Raises UserError unless each ``--config.A.B`` of the command line is a field."""
    seen = set()
    for arg in sys.argv[1:]:
        match = re.match(r"--?(?:no)?(config\.[^=\[]+)", arg)
        if not match:
            continue
        path, group, value = match[1], "config", config
        for key in path.split(".")[1:]:
            if not isinstance(value, ConfigDict):
                raise UserError(f"--{path}: --{group} is a value and has no fields")
            if key not in value:
                raise _unknown_field(path, key, group=value, config=config)
            group, value = f"{group}.{key}", value[key]
        if isinstance(value, ConfigDict):
            raise UserError(
                f"--{path} is a group of fields; set one of them, such as "
                f"--{path}.{next(iter(value))}=VALUE"
            )
        if isinstance(value, tuple) and path in seen:
            raise UserError(f"--{path} is given twice; its values would be joined")
        seen.add(path)


def _unknown_flag(name: str) -> str:
    head, dot, rest = name.partition(".")
    known = [flag for flag in flags.FLAGS if len(flag) > 1]
    if near := errors.nearest(head, known):
        return f"unknown flag --{name}; did you mean --{near}{dot}{rest}?"
    return f"unknown flag --{name}; --help lists them all"


def _unknown_field(
    path: str, key: str, *, group: ConfigDict, config: ConfigDict
) -> UserError:
    """Names fields of that name in other groups, or else the nearest one in its own."""
    last = "." + path.rpartition(".")[2]
    elsewhere = [field for field in _fields(config) if field.endswith(last)]
    if elsewhere:
        hint = "did you mean " + " or ".join(f"--{field}" for field in elsewhere) + "?"
    elif near := errors.nearest(key, group):
        hint = f"did you mean {near!r}?"
    else:
        hint = "known: " + ", ".join(sorted(group))
    return UserError(f"unknown flag --{path}: the config has no such field; {hint}")


def _fields(config: ConfigDict, prefix: str = "config") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}"


def run_config_file(argument: str) -> ConfigDict:
    """The config of ``FILE[:ARG]``; whatever is wrong with the file is a UserError.

    ml_collections runs the file of ``--config`` again, and would report its errors in
    many lines or only when the config is used.

    Raises:
      UserError: no such file, or one that does not return a config.
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
        config = values["get_config"](*[arg] if arg else [])
        if not isinstance(config, ConfigDict):
            raise UserError("get_config() must return what segjax.config.make returns")
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    except Exception as error:  # the file is code: anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        line = f"line {lines[-1]}: " if lines else ""
        raise UserError(
            f"--config {path}: {line}{type(error).__name__}: {error}"
        ) from error
    return config
