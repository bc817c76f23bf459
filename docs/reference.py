"""Prints docs/reference.md: the public functions and classes of the library.

python docs/reference.py > docs/reference.md
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Reference

The public functions and classes of `segjax/` with the first sentence of their
docstrings, which say shapes, ranges, errors and sources. Made by `make docs`.
"""


def summary(node: ast.AST) -> str:
    """The first paragraph of a docstring as one line."""
    text = ast.get_docstring(node) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def arguments(node: ast.FunctionDef) -> str:
    """The names of the parameters, ``*`` before the keyword-only ones."""
    names = [arg.arg for arg in node.args.posonlyargs + node.args.args]
    if node.args.vararg:
        names.append(f"*{node.args.vararg.arg}")
    elif node.args.kwonlyargs:
        names.append("*")
    names += [arg.arg for arg in node.args.kwonlyargs]
    if node.args.kwarg:
        names.append(f"**{node.args.kwarg.arg}")
    return ", ".join(names)


def reference() -> str:
    """The contents of docs/reference.md."""
    parts = [HEAD]
    for path in sorted((ROOT / "segjax").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        rows = []
        for node in tree.body:
            if getattr(node, "name", "_").startswith("_"):
                continue
            if isinstance(node, ast.FunctionDef):
                rows.append(f"| `{node.name}({arguments(node)})` | {summary(node)} |")
            elif isinstance(node, ast.ClassDef):
                rows.append(f"| class `{node.name}` | {summary(node)} |")
        if rows:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            name = name.removesuffix(".__init__")
            parts.append(f"## `{name}`\n\n{summary(tree)}\n")
            parts.append("\n".join(["| | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
