"""Scores of the model during training, and which of its checkpoints was the best."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets.evaluators import Score
from util.benchmarks import scored_metric
from util.distributed import gather_objects, is_main, wait_for_all, world_size
from util.errors import UserError
from util.io import read_json, write_json
from util.results import write_results

FOLDER, RECORD = "validation", "validation.json"


class Validation:
    """Scores every part of what is validated, and keeps the record of it.

    Below the run's folder, ``validation.json`` says how every step has scored and which was the best, and
    ``validation/step_000400.json`` holds all metrics of a step as ``results.json`` does. Masks are not kept.

    Args:
        output: the run's folder.
        parts: dataset → what scores a model on it, in all processes together; below ``output / "validation" / dataset``
            it may write what it needs.
        metric: by which the best is chosen; "auto": each dataset's own (``util.benchmarks``). Of several datasets it is
            their mean.
        options: all options, for the record.
        keep_best: called with a step whose checkpoint is the best so far.
        first_step: steps done; what the record has of later ones is dropped.

    Raises:
        UserError: the record is damaged, or cannot be written.
    """

    def __init__(
        self,
        output: Path,
        parts: Mapping[str, Score],
        metric: str,
        options: Mapping[str, Any],
        keep_best: Callable[[int], None] = lambda step: None,
        first_step: int = 0,
    ) -> None:
        self.output, self.parts, self.options, self.keep_best = output, parts, options, keep_best
        self.metrics = {name: scored_metric(name, metric) for name in parts}
        if is_main() and (output / RECORD).is_file():
            self._forget(first_step)

    def missed(self, step: int) -> bool:
        """Whether a step has not been scored, as the run was stopped meanwhile; the same answer in all processes."""
        own = is_main() and str(step) not in self._read()["scores"]
        return bool(gather_objects(own)[0])

    def score(self, model: Any, step: int) -> dict[str, float]:
        """Score a model, in all processes together.

        Args:
            model: in any mode; it is left in evaluation mode.
            step: number of steps it was trained.

        Returns:
            metrics, 0…100, of several datasets as ``dataset.metric``; none in all processes but the main one.

        Raises:
            UserError: a file cannot be read or written.
        """
        model.eval()
        self._clear()
        wait_for_all()
        found = {name: score(model) for name, score in self.parts.items()}
        if not is_main():
            return {}
        self._clear()
        metrics = {name: scores[0] for name, scores in found.items()}
        several = len(found) > 1
        counts = {name: scores[1] for name, scores in found.items()}
        (name, *_), path = found, self.output / FOLDER / f"step_{step:06d}.json"
        write_results(
            path,
            metrics if several else metrics[name],
            counts if several else counts[name],
            self.options,
            {"step": step, "processes": world_size()},
        )
        self._record(step, sum(metrics[part][key] for part, key in self.metrics.items()) / len(found))
        flat = {f"{part}.{key}": value for part, values in metrics.items() for key, value in values.items()}
        return flat if several else metrics[name]

    def _clear(self) -> None:
        """Remove masks: those of another step must not be taken for this one's."""
        if is_main():
            for name in self.parts:
                shutil.rmtree(self.output / FOLDER / name, ignore_errors=True)

    def _record(self, step: int, value: float) -> None:
        """Note a score, and keep the checkpoint if it is the best: first, as a run that is stopped comes here again."""
        content = self._read()
        scores, best = content["scores"], content["best"]
        is_best = math.isfinite(value) and (best in (None, str(step)) or value > scores[best])
        if is_best:
            self.keep_best(step)
        scores[str(step)] = value if math.isfinite(value) else None
        self._write(scores, str(step) if is_best else best)

    def _forget(self, first_step: int) -> None:
        """Drop the scores of steps that are still to come: they are another run's."""
        content = self._read()
        scores = {step: value for step, value in content["scores"].items() if int(step) <= first_step}
        if len(scores) < len(content["scores"]):
            self._write(scores, content["best"] if content["best"] in scores else None)

    def _write(self, scores: Mapping[str, float | None], best: str | None) -> None:
        metric = ", ".join(dict.fromkeys(self.metrics.values()))
        write_json(self.output / RECORD, {"metric": metric, "best": best, "scores": scores})

    def _read(self) -> dict[str, Any]:
        path = self.output / RECORD
        content = read_json(path, "the scores of a run's validations") if path.is_file() else {}
        scores = content.get("scores", {}) if isinstance(content, dict) else None
        if not isinstance(scores, dict) or not all(step.isdecimal() for step in scores):
            raise UserError(f"{path} is damaged; remove it, and the record begins anew")
        best = content.get("best")
        return {"scores": scores, "best": best if scores.get(best) is not None else None}
