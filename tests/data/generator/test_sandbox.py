"""Templates from strangers: what they may say works, what they may not is refused, with its line."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import pytest

from largeforge.data.generator.sandbox import TemplateFault, compiled

VALUES: dict[str, Any] = {"a": 7, "name": "Ana", "day": date(2026, 3, 4), "city": {"name": "Bern"}, "items": ["x", "y"]}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ a + 1 }}, {{ a * 2 }}, {{ a ** 2 }}, {{ a % 4 }}, {{ a // 2 }}", "8, 14, 49, 3, 3"),
        ("{{ name | upper }} {{ name ~ '!' }}", "ANA Ana!"),
        ("{% if a > 3 %}many{% else %}few{% endif %}", "many"),
        ("{% for item in items %}{{ loop.index }}{{ item }}{% endfor %}", "1x2y"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ("{{ day }} {{ day.year }} {{ day | format_date('%d.%m.') }}", "2026-03-04 2026 04.03."),
        ("{{ city.name }} {{ city['name'] }}", "Bern Bern"),
        ("{{ (a / 3) | decimals(2) }} {{ (a / 3) | round(1) }}", "2.33 2.3"),
        ("{{ items | join(' and ') }}", "x and y"),
        ("{{ other | default('none') }}", "none"),
    ],
)
def test_what_templates_may_say(source: str, text: str) -> None:
    assert compiled(source).render(VALUES) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ a.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ name.upper() }}",
        "{{ name.upper }}",
        "{{ items.append }}",
        "{{ loop }}",
        "{{ missing }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ (1 | round(10 ** 30)) }}",
        "{% set x = 'a' %}{{ x }}",
        "{% set x %}a{% endset %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
        "{% for i in range(9) recursive %}{% endfor %}",
        "{% for i in range(9) %}{% for j in range(9) %}{% for k in range(9) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% for i in range(900) %}{% for j in range(900) %}{{ name }}{% endfor %}{% endfor %}",
        "{{ lipsum() }}",
        "{{ cycler }}",
        "{{ name | attr('__class__') }}",
        "{{ items | map('upper') | list }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ unclosed",
        "{% if a %}never ended",
    ],
)
def test_what_templates_may_not(source: str) -> None:
    """Each is refused, and quickly: no template of a stranger takes the machine."""
    start = time.monotonic()
    with pytest.raises(TemplateFault):
        compiled(source).render(VALUES)
    assert time.monotonic() - start < 2


def test_a_fault_names_its_line() -> None:
    with pytest.raises(TemplateFault) as fault:
        compiled("one\ntwo\n{% set x = 1 %}")
    assert fault.value.line == 3


def test_names_are_those_that_must_be_given() -> None:
    assert compiled("{{ a }} {% for b in c %}{{ b }}{{ loop.index }}{% endfor %} {{ range(2) | list }}").names == {"a", "c"}
