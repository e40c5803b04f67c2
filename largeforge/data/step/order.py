"""Rows in an order, for a curriculum: by length, by a model's loss, or by chance. Moves rows and changes none.

Bengio et al. 2009 ("Curriculum learning") begin with what is easy. Every row has one key of 64 bits; keys are sorted at once (16 bytes a row), rows equal in
their keys stay as they were. The rows themselves are moved by the pipeline, from disk to disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from largeforge.data.rows import TURNS, ChatRow, Row
from largeforge.data.step.balance import draw
from largeforge.data.step.base import Parallel, Survey, WholeStep
from largeforge.data.step.config import OrderConfig

if TYPE_CHECKING:
    import numpy as np


class Order(WholeStep):
    """Sorts all rows by one number each."""

    config: OrderConfig
    moves: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The model, where it is the model's loss that counts."""
        return frozenset({"model"}) if self.config.by == "loss" else frozenset()

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Write one key a row: characters or loss (float64), or a draw (uint64)."""
        import numpy as np

        if self.config.by == "random":
            keys = np.array([draw(self.seed, row) for row in rows], dtype=np.uint64)
        elif self.config.by == "length":
            keys = np.array([sum(map(len, row.texts())) for row in rows], dtype=np.float64)
        else:
            keys = np.array(list(self._losses(rows)), dtype=np.float64)
        np.save(folder / "keys.npy", keys)

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Write the place of every row in the new order, all shards one after another (int64), and where each shard begins."""
        import numpy as np

        keys = np.concatenate([np.load(survey.folder / "keys.npy") for survey in surveys] or [np.empty(0)])
        if self.config.direction == "descending":
            # Turned round so that the sort stays stable; unsigned keys have no negative.
            keys = np.iinfo(np.uint64).max - keys if keys.dtype == np.uint64 else -keys
        order = np.argsort(keys, kind="stable")
        del keys
        places = np.lib.format.open_memmap(folder / "places.npy", mode="w+", dtype=np.int64, shape=order.shape) if len(order) else None
        if places is not None:
            places[order] = np.arange(len(order), dtype=np.int64)
            places.flush()
        sizes = [survey.num_rows for survey in surveys]
        begins = {survey.shard: [sum(sizes[:at]), sizes[at]] for at, survey in enumerate(surveys)}
        (folder / "shards.json").write_text(json.dumps(begins), encoding="utf-8")

    def destinations(self, shard: int, verdict: Path) -> np.ndarray:
        """The places of one shard's rows."""
        import numpy as np

        begin, size = json.loads((verdict / "shards.json").read_text(encoding="utf-8"))[str(shard)]
        if not size:
            return np.empty(0, dtype=np.int64)
        return np.array(np.load(verdict / "places.npy", mmap_mode="r")[begin : begin + size])

    def _losses(self, rows: Iterable[Row]) -> Iterable[float]:
        """Mean loss of each row under the model, in nats per token: of the answers of a chat, of the chosen answer, of a whole text.

        A row that has no such token within `max_length` comes last.
        """
        measure = _Measure(self.live["model"], max_length=self.config.max_length)
        for row in rows:
            yield measure(row)


class _Measure:
    """A model that reads rows. Rows are read one at a time, so that a loss does not depend on its neighbours."""

    def __init__(self, model: Any, *, max_length: int) -> None:
        from largeforge.data.mask import ChatTokenizer

        self.network = model.network
        self.tokenizer = model.tokenizer
        self.chat = ChatTokenizer(model.tokenizer, model.template)
        self.max_length = max_length

    def __call__(self, row: Row) -> float:
        import torch

        ids, learnt = self._tokens(row)
        ids, learnt = ids[: self.max_length], learnt[: self.max_length]
        if not any(learnt[1:]):
            return float("nan")  # sorted last in either direction
        device = next(self.network.parameters()).device
        training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode():
                inputs_BT = torch.tensor([ids], device=device)
                logits_TV = self.network(input_ids=inputs_BT).logits[0, :-1].float()
                losses_T = torch.nn.functional.cross_entropy(logits_TV, inputs_BT[0, 1:], reduction="none")
                return float(losses_T[torch.tensor(learnt[1:], device=device)].mean())
        finally:
            self.network.train(training)

    def _tokens(self, row: Row) -> tuple[list[int], list[bool]]:
        """Token ids, and which of them count."""
        if row.kind == "text":
            ids = self.tokenizer(row.content["text"]).input_ids
            return ids, [True] * len(ids)
        from largeforge.chat import Message

        names = TURNS[row.kind][:2]  # of a preference: the prompt and the chosen answer
        turns = tuple(Message(turn["role"], turn["content"]) for name in names for turn in row.content[name])
        found = self.chat.tokenize([self.chat.rendered(ChatRow(turns, row.origin))])[0]
        return found.token_ids, found.answer
