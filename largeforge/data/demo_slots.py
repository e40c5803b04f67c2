"""The demo's frames as Jinja2 templates with typed slots: how `[a|b]` and `{model}` of a phrase become what the template generator fills.

Knows the generator's slots and sandbox; knows nothing about what is wished for (demo_wishes.py). The shorthand of a frame is turned into a template once:
`[tune|train] {model} on {data}` is `{{ said_0 }} {{ model }} on {{ data }}` with a text slot for the first; whatever has braces is a slot that a wish fills.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from largeforge.data.generator.sandbox import Text as Template
from largeforge.data.generator.sandbox import compiled
from largeforge.data.generator.slots import Text

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Frame:
    """A whole wish with slots.

    Args:
        slots: its own choices of words, in the order they are said.
        template: the sentence.
        opens_with: the slot that it begins with; "" where it begins with words.
    """

    slots: Mapping[str, Text]
    template: Template
    opens_with: str

    def needs(self, name: str) -> bool:
        """Whether a slot stands in it."""
        return name in self.template.names

    def draw(self, rng: Random) -> dict[str, str]:
        """Choose its words, from left to right."""
        return {name: slot.draw(rng) for name, slot in self.slots.items()}


@lru_cache(maxsize=1024)
def frame(shorthand: str) -> Frame:
    """Read the shorthand of a frame."""
    alternatives = ALTERNATIVES.findall(shorthand)
    slots = {f"said_{number}": Text(type="text", values=words.split("|")) for number, words in enumerate(alternatives)}
    numbers = iter(slots)
    named = ALTERNATIVES.sub(lambda found: f"{{{next(numbers)}}}", shorthand)
    begins = _SLOT.match(shorthand)
    return Frame(slots, compiled(_SLOT.sub(r"{{ \1 }}", named)), begins[1] if begins else "")
