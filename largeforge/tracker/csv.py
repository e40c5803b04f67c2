"""A CSV table of every logged number; knows nothing about what is measured."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from largeforge.artifact import write_atomically
from largeforge.tracker.config import CSVConfig


class CSV:
    """Writes `<run>/csv/metrics.csv`."""

    def __init__(self, config: CSVConfig, *, folder: Path, values: dict[str, Any], name: str | None) -> None:
        self.folder = folder

    def loggers(self) -> list[Logger]:
        """A logger that goes on after the rows that metrics.jsonl has too; Lightning's own begins by deleting the table."""
        start_step = self._last_step()
        table = self.folder / "csv" / "metrics.csv"
        header: list[str] = []
        kept: list[dict[str, str]] = []
        if table.is_file():
            with table.open(encoding="utf-8", newline="") as stream:
                reader = csv.DictReader(stream)
                # a killed process may leave half a row
                kept = [row for row in reader if None not in row.values() and row["step"].isdigit() and int(row["step"]) <= start_step]
                header = list(reader.fieldnames or [])
            table.unlink()
            (self.folder / "csv" / "hparams.yaml").unlink(missing_ok=True)  # Lightning warns of a folder that is not empty
        # a row is on the disk once it is logged: a killed process loses none that its checkpoints have
        logger = CSVLogger(save_dir=self.folder, name="csv", version="", flush_logs_every_n_steps=1)
        writer = logger.experiment
        if kept:
            text = io.StringIO(newline="")
            again = csv.DictWriter(text, fieldnames=header)
            again.writeheader()
            again.writerows(kept)
            write_atomically(table, text.getvalue())
            writer.metrics_keys = header
        return [logger]

    def _last_step(self) -> int:
        """The last step of metrics.jsonl, which is cut to the checkpoint before a run goes on."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return max((int(json.loads(line)["step"]) for line in lines), default=0)
