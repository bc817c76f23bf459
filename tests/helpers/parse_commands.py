"""Parses command lines of programs without running them; a process of its own.

Reads a JSON list of [program, arguments] from standard input and writes the list of
what each program says of its arguments: "" if it would start.  Every command is parsed
in a fork of this process, which has imported what they need and has no threads.
"""

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import sys
import warnings
from pathlib import Path

from absl import app

from segjax import config as config_lib

ROOT = Path(__file__).parents[2]
# Words that stand for a choice of the reader.
EXAMPLES = {"FILE": "configs/quickstart.py", "DIR": "runs", "FOLDER": "photos"}


class Parsed(Exception):
    """The arguments are right: the program would start now."""


def program_file(program):
    path = ROOT / Path(*program.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def parse(program, arguments):
    pattern = rf"^(--config[ =])?({'|'.join(EXAMPLES)})$"
    arguments = [
        re.sub(pattern, lambda m: (m[1] or "") + EXAMPLES[m[2]], x) for x in arguments
    ]

    def parse_only(main, *, flags_parser):
        del main
        flags_parser(sys.argv)
        raise Parsed

    app.run = parse_only
    # Workdirs of the documents are not there: their config is that of the quickstart.
    config_lib.load = lambda path: config_lib.make()
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(str(program_file(program)), run_name="__main__")
    except Parsed:
        return ""
    except SystemExit as error:
        return f"exit code {error.code}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it neither parses its arguments nor starts"


def in_a_fork(program, arguments):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                text = parse(program, arguments)
            text = f"{text} {errors.getvalue()}".strip() if text else ""
        except BaseException as error:
            text = repr(error)
        os.write(write, text.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    commands = json.load(sys.stdin)
    for name in {program for program, _ in commands}:
        if program_file(name).name != "__main__.py":
            importlib.import_module(name)
    print(json.dumps([in_a_fork(*command) for command in commands]))
