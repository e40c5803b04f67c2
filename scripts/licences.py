"""Are the licences of everything that LargeForge installs open? Asks the installed distributions themselves.

Follows the dependencies of the installed package, its extras included, as far as they are installed here; knows
nothing about licences of models or data. A licence that is not on the list below is told by name and fails.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from typing import cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("sweep", "data", "storage", "ray", "test", "dev")

# SPDX ids of open licences that may be used beside Apache-2.0 without changing ours
OPEN = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "LGPL-3.0-only", "MIT", "MIT-0", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib", "LLVM-exception",
}  # fmt: skip

# What distributions without a License-Expression write instead
SPELLINGS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}

# What was read by hand: the metadata gives the licence's whole text, or no SPDX id
READ = {"python-dateutil": "Apache-2.0 OR BSD-3-Clause", "wordllama": "MIT"}


@dataclass(frozen=True)
class Licence:
    """What one distribution says of itself."""

    name: str
    text: str
    verdict: str  # open, proprietary or unknown


def main() -> int:
    licences = [licence_of(name, cast(Message, importlib.metadata.metadata(name))) for name in closure("largeforge", EXTRAS)]
    unknown = [licence for licence in licences if licence.verdict == "unknown"]
    proprietary = [licence for licence in licences if licence.verdict == "proprietary"]
    counts = Counter(licence.text for licence in licences if licence.verdict == "open")
    print(f"{sum(counts.values())} of {len(licences)} dependencies are open: " + ", ".join(f"{text} {count}" for text, count in counts.most_common()))
    if proprietary:
        print(f"Proprietary, and only here because torch drives an NVIDIA GPU with them: {', '.join(licence.name for licence in proprietary)}")
    for licence in unknown:
        print(f"{licence.name}: '{licence.text}' is no open licence that scripts/licences.py knows. Read it, then add it there or drop the dependency.")
    return 1 if unknown else 0


def closure(root: str, extras: Iterable[str]) -> list[str]:
    """Canonical names of everything `root[extras]` needs on this machine, itself left out.

    Raises:
        PackageNotFoundError: a dependency is not installed.
    """
    waiting = [(root, extra) for extra in ("", *extras)]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                step = (canonicalize_name(requirement.name), wanted)
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)
    return sorted({name for name, _ in seen} - {root})


def licence_of(name: str, metadata: Message) -> Licence:
    """Read License-Expression, else License where it is a name and no whole text, else the classifiers."""
    said = [READ.get(name, ""), metadata.get("License-Expression") or ""]
    short = (metadata.get("License") or "").strip()
    if "\n" not in short and short.upper() != "UNKNOWN":
        said.append(short)
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License :: ")]
    said.append(" AND ".join(SPELLINGS.get(line.lower(), line.replace(" ", "-")) for line in classifiers))
    text = next((line for line in said if line), "no licence is named")
    text = SPELLINGS.get(text.lower(), text)
    if is_open(text):
        return Licence(name, text, "open")
    if name.startswith(("nvidia-", "cuda-")):
        return Licence(name, text, "proprietary")
    return Licence(name, text, "unknown")


def is_open(expression: str) -> bool:
    """Whether an SPDX expression leaves a choice that is open throughout: one side of every OR, both sides of every AND."""
    if expression.count("(") != expression.count(")"):
        return False
    while inner := re.search(r"\(([^()]*)\)", expression):  # innermost brackets first
        expression = expression.replace(inner.group(0), "MIT" if is_open(inner.group(1)) else "closed")
    return any(all(part.strip() in OPEN for part in re.split(r" AND | WITH ", choice)) for choice in expression.split(" OR "))


if __name__ == "__main__":
    sys.exit(main())
