"""Jinja2 for templates from strangers: text with values put in, conditions and short loops; nothing that reaches Python or grows without end.

jinja2's sandbox keeps templates from Python's insides; what it leaves open is closed here: memory and time (no assignment, no macros, two loops
deep at most, results of a bounded length), methods (none can be called), and addresses in the output (no method can be printed). A name that
nobody set is an error, never an empty text. Knows nothing about rows or slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 20_000
MAX_RANGE = 1_000
_MAX_NUMBER = 10**18
_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Filter,
    nodes.Test,
    nodes.If,
    nodes.For,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.BinExpr,
    nodes.UnaryExpr,
    nodes.Concat,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Keyword,
    nodes.Call,
)
_FILTERS = (
    "abs capitalize decimals default first float format_date int join last length list lower max min "
    "reverse round sort string sum title trim truncate unique upper wordcount"
).split()
_TESTS = "defined undefined none number string even odd divisibleby in eq ne lt le gt ge true false".split()
_DATE = ("year", "month", "day")
_LOOP = ("index", "index0", "first", "last", "length", "revindex", "revindex0")


class TemplateFault(Exception):
    """What is wrong with a template, and on which of its lines (from 1)."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Text:
    """A compiled template, and the names that it needs."""

    source: str
    template: Template
    names: frozenset[str]

    def render(self, values: Mapping[str, Any]) -> str:
        """Put values in. Raises TemplateFault for a name that is not there, an error in an expression, or text without end."""
        pieces, length = [], 0
        try:
            for piece in self.template.generate(values):
                length += len(piece)
                if length > MAX_CHARS:
                    raise TemplateFault(f"it makes more than {MAX_CHARS:,} characters")
                pieces.append(piece)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as fault:
            raise TemplateFault(str(fault) or type(fault).__name__) from fault
        return "".join(pieces)


def compiled(source: str) -> Text:
    """Compile a template. Raises TemplateFault where it is no Jinja2, or uses what templates of strangers may not."""
    environment = _environment()
    try:
        tree = environment.parse(source)
        names = set(_names(tree, bound=frozenset(environment.globals), depth=0))
        template = Template.from_code(environment, environment.compile(tree), environment.make_globals(None))
        return Text(source, template, frozenset(names))
    except TemplateSyntaxError as fault:
        raise TemplateFault(fault.message or "is no Jinja2", fault.lineno) from fault
    except TemplateError as fault:
        raise TemplateFault(str(fault)) from fault


class Sandbox(ImmutableSandboxedEnvironment):
    """Arithmetic whose results stay small, and no attributes but those of a date and of a loop."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("% formats no text here; write the text with {{ }} in it")
        numbers = all(isinstance(side, (int, float)) for side in (left, right))
        if operator in ("*", "**") and not numbers:
            raise SecurityError(f"{operator} takes two numbers here")
        if operator == "**" and (abs(right) > 64 or abs(left) > 1_000):
            raise SecurityError("the power is too large")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > _MAX_NUMBER**2:
            raise SecurityError("the number is too large")
        return _bounded(result)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return (isinstance(obj, date) and attr in _DATE) or (isinstance(obj, LoopContext) and attr in _LOOP)


@lru_cache(maxsize=1)
def _environment() -> Sandbox:
    environment = Sandbox(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False, optimized=False)
    own = {"decimals": _decimals, "format_date": lambda value, form: value.strftime(form)}
    every: dict[str, Callable[..., Any]] = {**environment.filters, **own}
    environment.filters = {name: _guarded(every[name]) for name in _FILTERS}
    environment.tests = {name: test for name, test in environment.tests.items() if name in _TESTS}
    environment.globals = {"range": _range}
    return environment


def _decimals(value: float, places: int = 2) -> str:
    """2.5 with two decimals is 2.50."""
    return f"{value:.{max(0, min(9, places))}f}"


def _names(node: nodes.Node, *, bound: frozenset[str], depth: int) -> Iterator[str]:
    """Yield the names that a template must be given. Raises TemplateFault for a construct that is not among those allowed."""
    if not isinstance(node, _NODES) or (isinstance(node, nodes.For) and node.recursive):
        raise TemplateFault(f"{type(node).__name__.lower()} is not allowed in templates (values, filters, if and for are)", node.lineno)
    if isinstance(node, nodes.Call) and not (isinstance(node.node, nodes.Name) and node.node.name == "range"):
        raise TemplateFault("nothing can be called but range(...); filters do the rest: {{ name | upper }}", node.lineno)
    if isinstance(node, nodes.Name) and node.ctx == "load" and node.name not in bound:
        yield node.name
    if isinstance(node, nodes.For):
        depth += 1
        if depth > 2:
            raise TemplateFault("loops go two deep at most", node.lineno)
        yield from _names(node.iter, bound=bound, depth=depth)
        bound |= {"loop", *(name.name for name in (node.target, *node.target.find_all(nodes.Name)) if isinstance(name, nodes.Name))}
    for child in node.iter_child_nodes(exclude=("iter",) if isinstance(node, nodes.For) else ()):
        yield from _names(child, bound=bound, depth=depth)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is of a bounded length."""

    @wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        for value in (*arguments, *named.values()):
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_NUMBER:
                raise SecurityError("the number is too large")
        return _bounded(function(*arguments, **named))

    return guarded


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_CHARS:
        raise SecurityError(f"it makes more than {MAX_CHARS:,} characters")
    return value


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise SecurityError(f"range(...) goes to {MAX_RANGE:,} at most")
    return numbers
