"""`scripts/bench NAME ...`: finds the bench of that name in this folder.

A bench is a module with `main(argv) -> exit code`; one whose name ends in _side is a process that a bench starts.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

BENCHES = Path(__file__).parent


def benches() -> dict[str, str]:
    """Name -> what it measures (its docstring's first line), without importing any of them."""
    found = {}
    for path in sorted(BENCHES.glob("[a-z]*.py")):
        if path.stem.endswith("_side"):
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main(argv: Sequence[str]) -> int:
    known = benches()
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: scripts/bench NAME [--quick] [arguments of the bench ...]\n")
        print("\n".join(f"  {name:<8} {purpose}" for name, purpose in known.items()))
        return 0
    name, *rest = argv
    if name not in known:
        near = get_close_matches(name, known, n=1) or list(known)
        print(f"There is no bench {name} (there are: {', '.join(known)}).\nTry: scripts/bench {near[0]}", file=sys.stderr)
        return 2
    bench = importlib.import_module(f"scripts.benches.{name}")
    return int(bench.main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
