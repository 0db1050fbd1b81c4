"""What `train` returns: a `Run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.checkpointing.state import Best
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.inference.classifier import Classifier
from vit_dist.inference.prediction import PredictionList
from vit_dist.run_folder.metrics import Line
from vit_dist.training.summary import result_text


@dataclass(frozen=True)
class Run:
    """The result of `train`.

    stopped: whether a signal stopped it, before there was a summary. history: the lines of metrics.jsonl that count.
    summary: the content of summary.json. model: with the best weights, as `vit_dist.load` returns it.
    """

    folder: Path
    stopped: bool
    history: list[Line]
    best: Best | None
    summary: dict[str, Any]
    model: Classifier
    preprocessing: Preprocessing

    def __repr__(self) -> str:
        """Return its name and result in words."""
        made = self.history[-1]["update"] if self.history else 0
        words = ["stopped" if self.stopped else "finished", result_text(self.summary) if self.summary else ""]
        return f"Run({self.folder.name}: {', '.join(filter(None, [*words, f'{made:,} updates']))})"

    def report(self) -> Path:
        """Write the run's report into its folder and return the path of the page."""
        from vit_dist.report.page import write_report

        return write_report(self.folder)

    def predict(self, images: Any) -> PredictionList:
        """Return the prediction for each image, in any form, by the best weights; see `Classifier.predict`."""
        return self.model.predict(images)
