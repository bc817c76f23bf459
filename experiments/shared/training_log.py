"""What a training run shows and writes while it runs: metrics, scores, pictures."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from segjax import files, metrics, optim, training, viz
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.writer import Writer


class TrainingLog:
    """Metrics that are still on the device, timing, the progress bar, the log files.

    Files and the bar are those of process 0; all processes fetch the metrics.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, *, start: int, evaluated: bool
    ):
        self._workdir = workdir
        self._batch_size = config.batch_size
        self._rate = optim.schedule(config.optim, config.total_steps)
        main = jax.process_index() == 0
        self._writer = Writer(workdir, start, evaluated=evaluated) if main else None
        self._bar = tqdm.tqdm(
            total=config.total_steps,
            initial=start,
            unit="step",
            disable=not main,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        self._pending: list[tuple[int, np.ndarray, dict[str, jax.Array]]] = []
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._began, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as time spent waiting for input."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def add(self, step: int, ids: np.ndarray, values: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, without waiting for it."""
        self._pending.append((step, ids, values))

    def flush(self, saving: bool = False) -> str:
        """Fetches and logs the pending metrics; says which step was not finite.

        Before a checkpoint is saved (``saving``), the log files are complete.
        """
        if not self._pending:
            return ""
        rows = jax.device_get([values for _, _, values in self._pending])
        elapsed = time.perf_counter() - self._began
        bad = training.non_finite(rows)
        if bad is not None:
            step, ids, _ = self._pending[bad]
            return (
                f"loss {rows[bad]['loss']}, gradient norm {rows[bad]['grad_norm']} at "
                f"step {step}, batch of {', '.join(map(str, ids))}"
            )
        step = self._pending[-1][0]
        speed = len(rows) * self._batch_size / elapsed
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        means["lr"] = float(self._rate(step - 1))
        means["images_per_second"] = speed
        means["input_wait"] = self._waited / elapsed
        if self._writer:
            self._writer.scalars(step, means)
            if saving:
                self._writer.sync()
        text = f"loss {means['loss']:.3f}, {speed:.1f} img/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        self._pending.clear()
        self._restart_clock()
        return ""

    def evaluation(
        self,
        step: int,
        scores: dict[str, Any],
        *,
        examples: list[dict],
        info: datasets.Dataset,
    ) -> None:
        """Logs the scores and the pictures image / truth / prediction."""
        if self._writer:
            values = {f"val_{name}": scores[name] for name in metrics.SCORES}
            self._writer.scalars(step, values)
            line = ", ".join(f"{name} {scores[name]:.4f}" for name in metrics.SCORES)
            self._bar.write(f"step {step}: validation {line}", file=sys.stderr)
            folder = self._workdir / workdir_lib.PICTURES
            folder.mkdir(exist_ok=True)
            for i, example in enumerate(examples):
                picture = viz.panel(
                    example["image"],
                    example["label"],
                    prediction=example["prediction"],
                    palette=info.palette,
                )
                self._writer.picture(step, f"validation/{i}", picture)
                path = folder / f"{step:08d}_{i}.png"
                data = cv2.imencode(".png", picture[..., ::-1])[1]
                with files.atomic_write(path) as partial:
                    partial.write_bytes(data)
            # The score is added to the checkpoint next, and is not computed again.
            self._writer.sync()
        self._restart_clock()

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()
            self._writer = None
