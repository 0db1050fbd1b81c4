"""The model card of an exported model: Markdown for the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vit_dist.config.config import Config
from vit_dist.formatting import code_span, duration, json_line, markdown, weights_text
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import parameter_count
from vit_dist.report.differences import data_name
from vit_dist.run_folder.figures import margin

_LISTED_CLASSES = 20

_FRONT_MATTER = """---
tags:
- image-classification
- timm
library_name: timm
pipeline_tag: image-classification
---
"""

_SNIPPET = """import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder; on the Hub: "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open("picture.png")).convert("{mode}")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max().item())
"""


def model_card(trained: TrainedModel, summary: Mapping[str, Any] | None, name: str) -> str:
    """Return Markdown with the Hub's front matter: the model, its data, results, recipe and usage.

    summary: the content of its run's summary.json. Unknown values are left out.
    """
    parts = [_model(trained, name), _data(trained)]
    if summary is not None and trained.update is not None:
        parts.append(_results(trained, summary))
    if trained.update is not None:
        parts.append(
            f"## Recipe\n\nFields that differ from vit_dist's defaults:\n\n```yaml\n{_recipe(trained.config)}```\n"
        )
    return _FRONT_MATTER + "\n" + "\n".join([*parts, _usage(trained)])


def _model(trained: TrainedModel, name: str) -> str:
    config, side = trained.config.model, trained.preprocessing.image_size
    lines = [
        f"# {markdown(name)}\n",
        f"{code_span(config.name)}, {parameter_count(trained.model):,} parameters, for images of {side}×{side} pixels "
        f"and {len(trained.classes)} classes.",
    ]
    if trained.update is not None:
        lines.append(f"Trained with vit_dist: the {weights_text(trained.weights)} of update {trained.update:,}.")
    return "\n".join(lines) + "\n"


def _data(trained: TrainedModel) -> str:
    data, preprocessing = trained.config.data, trained.preprocessing
    side = preprocessing.image_size
    more = len(trained.names) - _LISTED_CLASSES
    classes = ", ".join(code_span(name) for name in trained.names[:_LISTED_CLASSES]) + (
        f" and {more:,} more" if more > 0 else ""
    )
    lines = ["## Data\n"]
    if trained.update is not None:
        lines += [f"- data: {markdown(data_name(trained.config))}"] if data.source != "folder" or data.root else []
    lines += [
        f"- classes: {classes}",
        f"- images: {trained.channels} × {side} × {side}, (value/255 - mean) / std",
        f"- image files: {preprocessing.resizing()}; turned upright as EXIF says, what is transparent on white",
        f"- mean: {list(preprocessing.mean)}",
        f"- std: {list(preprocessing.std)}",
    ]
    return "\n".join(lines) + "\n"


def _results(trained: TrainedModel, summary: Mapping[str, Any]) -> str:
    """Return the results of the run; a metric only if it was measured with exactly these weights."""
    rows = [f"- {name}: {markdown(value)}" for name, value in _run_facts(summary)]
    best = summary.get("best")
    same_kind = trained.weights == summary["weights"]
    tested = same_kind and trained.update == (best["update"] if best else summary["updates"])
    measured = {
        "test": summary.get("test") if tested else None,
        "val": summary.get("final") if same_kind and trained.update == summary["updates"] else None,
    }
    if tested and best:
        chance = _chance(summary, "val", best["value"]) if best["metric"].endswith("top1") else ""
        rows.append(f"- chosen by {markdown(best['metric'])} on val: {_number(best['value'])}{chance}")
    table = [
        f"| {split} | {_number(metrics['top1'])}{_chance(summary, split, metrics['top1']) if tested else ''} | "
        + " | ".join(_number(metrics.get(name)) for name in ("top5", "loss"))
        + " |"
        for split, metrics in measured.items()
        if metrics
    ]
    if table:
        table = ["| split | top1 % | top5 % | loss |", "|---|---|---|---|", *table, ""]
    return "\n".join(["## Results\n", *table, *rows]) + "\n"


def _chance(summary: Mapping[str, Any], split: str, top1: float) -> str:
    """Return how far chance may move the accuracy on a split, and of how many images it is; empty if not known."""
    figures = summary.get("figures")
    if not figures or figures["split"] != split:
        return ""
    return f" ±{margin(top1, figures['top1_interval']):.1f} ({figures['seen']:,} images)"


def _run_facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values of the facts that hold for the whole run."""
    yield "training", f"{summary['epochs']:.4g} epochs, {summary['updates']:,} updates"
    yield "time", duration(summary["train_seconds"])
    yield "hardware", f"{summary['world_size']} × {summary['device']}, {summary['precision']}"
    if summary["samples_per_second"]:
        yield "throughput", f"{summary['samples_per_second']:,.0f} images/s"


def _number(value: Any) -> str:
    """Return a number to four digits, a text as it is, and an empty text for None."""
    return "" if value is None else markdown(value) if isinstance(value, str) else f"{value:.4g}"


def _recipe(config: Config) -> str:
    """Return the fields that can change a result and differ from their defaults, as YAML."""
    defaults, sections = Config().fields(), dict[str, list[str]]()
    for name, value in config.fields(changes_result=True).items():
        if value != defaults[name]:
            section, _, field = name.partition(".")
            # JSON values are valid YAML.
            sections.setdefault(section, []).append(f"  {field}: {json_line(value)}\n")
    return "".join(f"{section}:\n{''.join(lines)}" for section, lines in sections.items())


def _usage(trained: TrainedModel) -> str:
    parts = ["## Usage\n"]
    mode = {1: "L", 3: "RGB"}.get(trained.channels)
    if mode:
        parts.append(f"```python\n{_SNIPPET.format(mode=mode)}```\n")
    parts.append("```\nvit-dist predict . picture.png\n```")
    return "\n".join(parts) + "\n"
