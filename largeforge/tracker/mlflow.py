"""MLflow, a server or a database; knows nothing about what is measured."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger

from largeforge.errors import InputError, MissingExtra
from largeforge.tracker.config import MLflowConfig

log = logging.getLogger("largeforge.tracker")


class MLflow:
    """Sends to an MLflow server or database; by default writes `<run>/mlflow/mlflow.db`.

    Raises:
        MissingExtra: mlflow or what it needs for a database is not installed.
        InputError: the store is a folder, which MLflow writes no more.
    """

    def __init__(self, config: MLflowConfig, *, folder: Path, values: dict[str, Any], name: str | None) -> None:
        self.config = config
        self.folder, self.values, self.name = folder, values, name or folder.name
        for library in ("mlflow", "sqlalchemy", "alembic"):  # the light package of mlflow brings the last two not
            if importlib.util.find_spec(library) is None:
                raise MissingExtra(library, extra="trackers")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = config.tracking_uri
        if uri is not None and ("://" not in uri or uri.startswith("file:")) and uri != "databricks":
            raise InputError(f"{uri} is a folder, and MLflow 3 keeps runs in a database or on a server.", next_step="tracking_uri=sqlite:////path/to/mlflow.db")

    def loggers(self) -> list[Logger]:
        """One logger; a run that goes on is the same run of MLflow.

        Raises:
            InputError: MLflow does not take the run.
        """
        from mlflow.exceptions import MlflowException

        # MLflow and its tables' migrations greet at length
        for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        folder = (self.folder / "mlflow").resolve()
        folder.mkdir(exist_ok=True)
        own = self.config.tracking_uri is None
        uri = self.config.tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        kept = folder / "run_id"
        known = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
        logger = MLFlowLogger(
            experiment_name=self.config.experiment,
            run_name=self.name,
            tracking_uri=uri,
            artifact_location=(folder / "artifacts").as_uri() if own else None,
            run_id=known,
        )
        try:
            client = logger.experiment
            if known:
                client.update_run(known, status="RUNNING")
            else:
                kept.write_text(str(logger.run_id), encoding="utf-8")
                logger.log_hyperparams(self.values)
        except MlflowException as fault:
            raise InputError(f"MLflow does not take the run: {fault}", next_step="tracking_uri below tracker; null is a file in the run's folder") from fault
        log.info("curves: %s", f"mlflow ui --backend-store-uri {uri}" if own else uri.partition("@")[2] or uri)
        return [logger]
