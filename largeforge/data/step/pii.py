"""Personal data and secrets taken out of rows: what can be told by its form. Knows no names of people, no addresses of houses: those need a model.

Telephone numbers are found by phonenumbers (Google's libphonenumber); cards, IBANs and Bitcoin addresses are known by their checksums
(`largeforge/data/step/pii_forms.py`). Microsoft's presidio has recognizers for the same forms; importing it takes seconds and loads spaCy and torch into
every worker, and its recognizer of e-mail addresses fetches a list from the network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import PiiConfig
from largeforge.data.step.pii_forms import FINDERS, Found, phones
from largeforge.errors import InputError, MissingExtra


class Pii(Step):
    """Finds entities in every text of a row and replaces, masks or hashes them, or drops the row; the same text gives the same result everywhere."""

    config: PiiConfig

    def ready(self) -> None:
        """Refuse countries that phonenumbers does not know, and a list of nothing to look for."""
        if not self.config.entities:
            raise InputError("step.pii.entities is empty: nothing would be looked for.", next_step="step.pii.entities=[email,phone]")
        if "phone" in self.config.entities:
            try:
                from phonenumbers import SUPPORTED_REGIONS
            except ImportError as fault:
                raise MissingExtra("phonenumbers", extra="data") from fault
            for region in self.config.phone_regions:
                if region not in SUPPORTED_REGIONS:
                    raise InputError(f"step.pii.phone_regions holds {region!r}, which is no country's code.", next_step="step.pii.phone_regions=[US,DE]")

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Give every row on without what was found; how much of which kind goes into lineage as `pii`."""
        for row in rows:
            counts: Counter[str] = Counter()
            cleaned = row.rewritten(lambda text, counts=counts: self._cleaned(text, counts), by=self.name)  # type: ignore[misc]
            told = {kind: counts[kind] for kind in sorted(counts)}
            if counts and self.config.mode == "drop":
                yield Dropped(row, "pii", ", ".join(f"{kind} {count}" for kind, count in told.items()))
            else:
                yield cleaned.with_lineage(pii=told) if counts else row

    def find(self, text: str) -> list[Found]:
        """What is found in a text, in order, none overlapping another: of two that do, the one that begins first stays, then the longer."""
        found = [hit for kind in self.config.entities if kind != "phone" for hit in FINDERS[kind](text)]
        if "phone" in self.config.entities:
            found += phones(text, self.config.phone_regions)
        kept: list[Found] = []
        for hit in sorted(found, key=lambda hit: (hit.start, -hit.end, hit.kind)):
            if not kept or hit.start >= kept[-1].end:
                kept.append(hit)
        return kept

    def _cleaned(self, text: str, counts: Counter[str]) -> str:
        hits = self.find(text)
        for hit in reversed(hits):
            counts[hit.kind] += 1
            text = text[: hit.start] + self._stand_in(hit.kind, text[hit.start : hit.end]) + text[hit.end :]
        return text

    def _stand_in(self, kind: str, value: str) -> str:
        if self.config.mode == "mask":
            return "".join("*" if char.isalnum() else char for char in value)
        if self.config.mode == "hash":
            return f"<{kind.upper()}:{hashlib.sha256(f'{self.config.salt} {kind} {value}'.encode()).hexdigest()[:8]}>"
        return f"<{kind.upper()}>"
