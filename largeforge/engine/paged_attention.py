"""Attention over a paged cache of keys and values, for transformers' continuous batching; knows nothing about requests' texts.

Stock sdpa lets every query of a batch look at every key and masks what is not its own: of a 39 ms step of a small Llama (32 requests
of 250 tokens, one thread) 30 were that. Here each request's own blocks are gathered, a few length classes of requests at a time, so
that one long conversation pads nobody else; what is gathered is planned once per step and shared by all layers.

Shapes: T query tokens of a step, one request after another; N requests of one class, Q queries of each, L keys of each;
H heads of queries, K heads of keys and values, D head width; P tokens of a page (a block of one layer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "largeforge_paged"
TALL = 0.7  # requests share a class where the shortest has this share of the longest's blocks ...
ROOM_BYTES = 4 * 2**20  # keys and values that a CPU's thread gathers at once: what is still in its cache is read at twice the speed
SHORT_BLOCKS = 4  # ... or few blocks at all: a class more costs more than the padding
REFUSED = ("s_aux", "softcap", "position_bias")  # what some networks hand to attention and this one does not compute


@dataclass(frozen=True)
class Piece:
    """What one request brings to a step: `length` tokens after the `past` that are in the cache, and its blocks per kind of attention."""

    past: int
    length: int
    tables: tuple[Sequence[int], ...]


@dataclass
class _Class:
    """Requests whose queries are computed in one call."""

    tokens: Tensor | None  # N * Q places among the step's tokens; None is all of them, in order
    num: int
    width: int  # Q
    pages: Tensor | None = None  # first pages of N * blocks, keys' then values'; None reads this step's own keys and values
    before: Tensor | None = None  # places of one request's older keys, where a ring must be read before it is written
    mask: Tensor | None = None  # bool, broadcast to N1QL; None with Q > 1 is causal
    kept: Tensor | None = None  # of N * Q, those that are no padding; None is all
    written_to: Tensor | None = None  # places of the kept ones


@dataclass
class Plan:
    """What the layers of one kind of attention do in a step."""

    written: Tensor  # T places in the cache
    classes: list[_Class] = field(default_factory=list)

    def to(self, device: torch.device) -> Plan:
        """Move every index to where the network is."""
        for one in self.classes:
            for name in ("tokens", "pages", "before", "mask", "kept", "written_to"):
                value = getattr(one, name)
                if value is not None:
                    setattr(one, name, value.to(device, non_blocking=True))
        self.written = self.written.to(device, non_blocking=True)
        return self


def plan(allocator: Any, names: Sequence[str], pieces: Sequence[Piece], *, room: int = 2**31) -> Plan:
    """Lay out a step for one kind of attention.

    Args:
        allocator: transformers' allocator of that kind's blocks.
        names: the requests', as the allocator knows them.
        pieces: in the order of the step's tokens.
        room: blocks that are gathered at once at most, but for a single request.
    """
    window = getattr(allocator, "sliding_window", None)
    page, stride = allocator.tokens_per_page, allocator.block_physical_stride
    starts, written, at = [], [], 0
    fresh: list[int] = []
    paged: list[int] = []
    found: list[_Class] = []
    for number, piece in enumerate(pieces):
        starts.append(at)
        at += piece.length
        table = piece.tables[allocator.index]
        if piece.length == 1:
            slot = piece.past if window is None else piece.past % window
            written.append(table[slot // page] * stride + slot % page)
            paged.append(number)
            continue
        written.extend(allocator.get_write_indices(names[number], piece.past, piece.length))
        if piece.past == 0:
            fresh.append(number)
        elif window is None:
            paged.append(number)
        else:
            found.append(_ring(allocator, names[number], piece, starts[number], window))
    seen = {number: _seen(pieces[number], window) for number in paged}
    whole = len(paged) == len(pieces)
    blocks = {number: -(-seen[number] // page) for number in paged}
    for group in _classes(paged, blocks, {number: pieces[number].length for number in paged}, room=room):
        found.append(_paged(allocator, group, pieces, starts, seen, window, whole=whole and group == list(range(len(pieces)))))
    for group in _classes(fresh, {number: pieces[number].length for number in fresh}, dict.fromkeys(fresh, 1), room=2**31):
        found.append(_fresh(group, pieces, starts, window))
    found.sort(key=lambda one: one.before is None)  # a ring is read before anything is written
    return Plan(torch.tensor(written), found)


def _seen(piece: Piece, window: int | None) -> int:
    """Keys in the cache that a piece looks at, its own included."""
    total = piece.past + piece.length
    return total if window is None else min(total, window)


def _classes(numbers: list[int], sizes: dict[int, int], widths: dict[int, int], *, room: int) -> Iterator[list[int]]:
    """Split requests into classes of about the same size, and of the same kind of width (one query, or several); each in their order."""
    left = sorted(numbers, key=lambda number: (widths[number] > 1, widths[number], sizes[number]), reverse=True)
    while left:
        first = left[0]
        end = 1
        while (
            end < len(left)
            and (end + 1) * sizes[first] <= room
            and (sizes[left[end]] >= TALL * sizes[first] or sizes[first] <= SHORT_BLOCKS)
            and widths[left[end]] >= TALL * widths[first]
            and (widths[first] == 1) == (widths[left[end]] == 1)
        ):
            end += 1
        yield sorted(left[:end])
        left = left[end:]


def _places(group: list[int], pieces: Sequence[Piece], starts: Sequence[int]) -> _Class:
    """The queries of a class; a shorter piece repeats its last token, and what comes of that is thrown away."""
    lengths = [pieces[number].length for number in group]
    width = max(lengths)
    if width == 1:
        tokens = torch.tensor([starts[number] for number in group])
        return _Class(tokens, len(group), 1, written_to=tokens)
    first = torch.tensor([starts[number] for number in group])
    length = torch.tensor(lengths)
    steps = torch.arange(width)
    tokens = (first[:, None] + torch.minimum(steps[None], length[:, None] - 1)).flatten()
    if min(lengths) == width:
        return _Class(tokens, len(group), width, written_to=tokens)
    kept = (steps[None] < length[:, None]).flatten().nonzero().squeeze(1)
    return _Class(tokens, len(group), width, kept=kept, written_to=tokens[kept])


def _paged(
    allocator: Any, group: list[int], pieces: Sequence[Piece], starts: Sequence[int], seen: dict[int, int], window: int | None, *, whole: bool
) -> _Class:
    one = _places(group, pieces, starts)
    page = allocator.tokens_per_page
    blocks = max(-(-seen[number] // page) for number in group)
    tables = [pieces[number].tables[allocator.index] for number in group]
    rows = [list(table[:blocks]) + [table[0]] * (blocks - len(table)) for table in tables]
    keys = torch.tensor(rows).flatten() * (2 * allocator.pages_per_block)
    one.pages = torch.cat([keys, keys + 1])
    past = torch.tensor([pieces[number].past for number in group])
    if one.width == 1:
        last = (past if window is None else past.clamp(max=window - 1))[:, None]
    else:
        length = torch.tensor([pieces[number].length for number in group])
        last = past[:, None] + torch.minimum(torch.arange(one.width)[None], length[:, None] - 1)
    one.mask = (torch.arange(blocks * page)[None, None] <= last[:, :, None])[:, None]
    if whole and one.width == 1:
        one.tokens = one.written_to = None
    return one


def _fresh(group: list[int], pieces: Sequence[Piece], starts: Sequence[int], window: int | None) -> _Class:
    """Prompts that nothing is in the cache of: causal among themselves; what pads a shorter one comes after it, and is not seen."""
    one = _places(group, pieces, starts)
    if window is not None and one.width > window:
        steps = torch.arange(one.width)
        one.mask = ((steps[None] <= steps[:, None]) & (steps[None] > steps[:, None] - window))[None, None]
    if one.kept is None and len(group) == len(pieces) == 1:
        one.tokens = one.written_to = None
    return one


def _ring(allocator: Any, name: str, piece: Piece, start: int, window: int) -> _Class:
    """A further piece of a prompt behind a sliding window: it writes over what it still has to see."""
    tokens = torch.arange(start, start + piece.length)
    read = allocator.get_read_indices(name, piece.past, piece.length)
    before = torch.tensor(read[: len(read) - piece.length])
    keys = torch.arange(piece.past - len(before), piece.past + piece.length)
    queries = torch.arange(piece.past, piece.past + piece.length)
    mask = (keys[None] <= queries[:, None]) & (keys[None] > queries[:, None] - window)
    return _Class(tokens, 1, piece.length, before=before, mask=mask[None, None], written_to=tokens)


class PagedAttention:
    """The cache's side: holds the room that keys and values are gathered into. One per batch that runs.

    Args:
        cache: transformers' PagedAttentionCache.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self._room: Tensor | None = None
        self._fitting = {allocator.index: _fitting(allocator, torch.device(cache.device)) for allocator in cache.cache_allocators.values()}

    def plan(self, names: Sequence[str], pieces: Sequence[Piece]) -> PagedStep:
        """Lay out a step."""
        allocators = self.cache.cache_allocators.values()
        return PagedStep(self, {one.index: plan(one, names, pieces, room=self._fitting[one.index]) for one in allocators})

    def gathered(self, pages: Tensor, allocator: Any, layer: int) -> Tensor:
        """Keys and values of some pages, keys first: (2 * N * blocks, P, K, D)."""
        page = allocator.tokens_per_page
        source = allocator.cache_tensor.view(-1, page, allocator.num_key_value_heads, allocator.head_dim)
        pages = pages + 2 * allocator.layer_indices.index(layer)
        needed = pages.numel() * source[0].numel()
        if self._room is None or self._room.numel() < needed:
            self._room = source.new_empty(needed + needed // 4)
        return torch.index_select(source, 0, pages, out=self._room[:needed].view(pages.numel(), *source.shape[1:]))


def _fitting(allocator: Any, device: torch.device) -> int:
    """Blocks that are gathered at once at most; a GPU is best given all there is to do."""
    return int(ROOM_BYTES * torch.get_num_threads() // allocator.bytes_per_page) if device.type == "cpu" else 2**31


@dataclass
class PagedStep:
    """A step that is laid out: what every layer's attention is handed."""

    attention: PagedAttention
    plans: dict[int, Plan]

    def to(self, device: torch.device) -> PagedStep:
        for one in self.plans.values():
            one.to(device)
        return self

    def attend(self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float | None) -> Tensor:
        """Write a layer's new keys and values into the cache and answer its queries: (T, H, D)."""
        allocator = self.attention.cache.layer_to_allocator[layer]
        dtype = allocator.cache_dtype
        query_THD, key_TKD, value_TKD = (one.transpose(0, 1).to(dtype) for one in (query_HTD, key_KTD, value_KTD))
        step = self.plans[allocator.index]
        out_THD = None if len(step.classes) == 1 and step.classes[0].tokens is None else torch.empty_like(query_THD, memory_format=torch.contiguous_format)
        keys, values = allocator._kv_token_views[layer]
        unwritten = True
        for one in step.classes:
            if one.before is None and unwritten:
                keys.index_copy_(0, step.written, key_TKD)
                values.index_copy_(0, step.written, value_TKD)
                unwritten = False
            query_NQHD = (query_THD if one.tokens is None else query_THD[one.tokens]).unflatten(0, (one.num, one.width))
            if one.pages is not None:
                gathered = self.attention.gathered(one.pages, allocator, layer).view(2, one.num, -1, allocator.num_key_value_heads, allocator.head_dim)
                key_NLKD, value_NLKD = gathered[0], gathered[1]
            elif one.tokens is None:
                key_NLKD, value_NLKD = key_TKD[None], value_TKD[None]
            else:
                key_NLKD, value_NLKD = (new[one.tokens].unflatten(0, (one.num, one.width)) for new in (key_TKD, value_TKD))
                if one.before is not None:
                    key_NLKD = torch.cat([keys[one.before][None], key_NLKD], dim=1)
                    value_NLKD = torch.cat([values[one.before][None], value_NLKD], dim=1)
            found = _attention(query_NQHD, key_NLKD, value_NLKD, one.mask, scale)
            if out_THD is None or one.written_to is None:
                out_THD = found
            else:
                out_THD.index_copy_(0, one.written_to, found if one.kept is None else found[one.kept])
        if unwritten:
            keys.index_copy_(0, step.written, key_TKD)
            values.index_copy_(0, step.written, value_TKD)
        assert out_THD is not None
        return out_THD


def _attention(query_NQHD: Tensor, key_NLKD: Tensor, value_NLKD: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Answer the queries of a class; returns (N * Q, H, D). No mask is causal, queries and keys being the same tokens."""
    num, width, heads, size = query_NQHD.shape
    shared = heads // key_NLKD.shape[2]  # queries' heads per head of keys
    key, value = key_NLKD.transpose(1, 2), value_NLKD.transpose(1, 2)
    if width == 1:  # heads that share keys stand as so many queries: nothing is repeated
        query = query_NQHD.view(num, heads // shared, shared, size)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.reshape(num, heads, size)
    query = query_NQHD.transpose(1, 2)
    grouped = shared > 1 and (mask is None or query.device.type == "cpu")
    if shared > 1 and not grouped:  # on a GPU a mask and shared keys together leave only the slow way
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and width > 1, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).reshape(num * width, heads, size)


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **others: Any
) -> tuple[Tensor, None]:
    """What layers call. Without a step it is transformers' own sdpa: somebody else computes with the same network meanwhile."""
    step: PagedStep | None = others.get("paged_step")
    if step is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    if any(others.get(name) is not None for name in REFUSED):
        raise NotImplementedError(f"{type(module).__name__} hands over {', '.join(REFUSED)}: paged attention does not compute that.")
    layer: Any = module.layer_idx
    return step.attend(layer, query[0], key[0], value[0], scaling)[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def can_page(network: PreTrainedModel) -> bool:
    """Whether this attention computes what the network's own does: sdpa or eager, without sinks, soft caps or biases by position."""
    config: Any = network.config.get_text_config()
    if network.config._attn_implementation not in ("sdpa", "eager", "paged|eager"):
        return False
    if any(getattr(config, name, None) for name in ("attn_logit_softcapping", "position_bias")):
        return False
    return not any(hasattr(module, "sinks") for module in network.modules())
