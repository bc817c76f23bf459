"""Every command of the documents: its program, its flags, its config, its overrides."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.rglob("docs/**/*.md")]
PROGRAMS = [
    path
    for path in [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/*/*.py")]
    if 'if __name__ == "__main__"' in path.read_text()
]


def commands_of(path):
    """(program, arguments) of the commands in a document or a program's docstring."""
    text = path.read_text()
    if path.suffix == ".py":
        blocks = [text.partition('"""')[2].partition('"""')[0].replace("\\\\", "\\")]
    else:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
        inline = re.findall(r"`(python -m experiments[^`]*)`", text)
        blocks += [" ".join(command.split()) for command in inline]
    for block in blocks:
        block = re.sub(r"\\\n\s*", " ", block)
        # RUN="python -m ..", then $RUN --config ..
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.M):
            block = re.sub(rf"^{name}=.*", "", block, flags=re.M)
            block = block.replace(f"${name}", value)
        for line in block.splitlines():
            # for n in 1 5 20; do python -m .. --proposals=$n
            for name, value in re.findall(r"for (\w+) in ([^\s;]+)", line):
                line = line.replace(f"${name}", value)
            line = re.sub(r"\$\(echo ([^)]*)\)", r"\1", line)  # a folder by its pattern
            found = re.search(r"python -m (experiments[.\w]*)(.*)", line)
            if not found:
                continue
            # Up to a pipe, a comment or a redirection.
            arguments = shlex.split(re.split(r"\s[|;>&#]", found[2])[0])
            # What only shows the form of a command is none.
            if arguments and not any(
                word == "..." or set("<>[]|") & set(word) or word.endswith("config.")
                for word in arguments
            ):
                yield found[1], arguments


COMMANDS = {
    path.relative_to(ROOT).as_posix(): list(commands_of(path))
    for path in sorted(DOCUMENTS + PROGRAMS)
}
COMMANDS = {path: commands for path, commands in COMMANDS.items() if commands}


def parse(commands):
    """What the programs say of commands: "" if they would start."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "parse_commands.py"],
        input=json.dumps(commands),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers():
    """What the programs say of each command of each document."""
    every = [command for commands in COMMANDS.values() for command in commands]
    unique = [json.loads(text) for text in sorted({json.dumps(x) for x in every})]
    return {json.dumps(c): text for c, text in zip(unique, parse(unique))}


def test_the_documents_hold_commands():
    assert sum(map(len, COMMANDS.values())) > 100
    programs = {program for commands in COMMANDS.values() for program, _ in commands}
    assert {"experiments.train", "experiments.predict"} <= programs


@pytest.mark.parametrize("document", COMMANDS)
def test_commands_are_accepted(document, answers):
    wrong = [
        f"{program} {shlex.join(arguments)}: {text}"
        for program, arguments in COMMANDS[document]
        if (text := answers[json.dumps([program, arguments])])
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_command_is_seen():
    good = ["experiments.train", ["--config=configs/quickstart.py", "--workdir=a"]]
    wrong = [
        ["experiments.train", ["--config", "configs/none.py", "--workdir=a"]],
        ["experiments.train", ["--config=configs/fcn_camvid.py:x", "--workdir=a"]],
        ["experiments.predict", ["--workdir=a", "--outptu=b", "c"]],
        ["experiments.evaluate", ["--workdir=a", "--config.optim.lrr=1"]],
    ]
    first, *others = parse([good, *wrong])
    assert not first and all(others)


def test_the_reference_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "reference.md").read_text()
    assert done.stdout == written, "run `make docs`"


def test_links_of_the_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
