"""What a person should know of an exported model, as the Hugging Face hub shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vit_dist.config.config import Config
from vit_dist.formatting import duration
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import parameter_count

_LISTED = 20


_FRONT = """---
tags:
- image-classification
- timm
library_name: timm
pipeline_tag: image-classification
---
"""


_WEIGHTS = {"raw": "the weights themselves", "ema": "the EMA weights"}


_SNIPPET = """import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder; on the hub: "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("picture.png").convert("{mode}")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()], probabilities.max().item())
"""


def model_card(trained: TrainedModel, summary: Mapping[str, Any] | None, name: str) -> str:
    """Markdown with the hub's front matter: what the model is, its data, figures and recipe, how to use it.

    summary: the content of its run's summary.json. What is not known is left out.
    """
    parts = [_what(trained, name), _data(trained)]
    if summary is not None and trained.update is not None:
        parts.append(_figures(trained, summary))
    if trained.update is not None:
        parts.append(f"## Recipe\n\nWhat differs from vit_dist's defaults:\n\n```yaml\n{_recipe(trained.config)}```\n")
    return _FRONT + "\n" + "\n".join([*parts, _use(trained)])


def _what(trained: TrainedModel, name: str) -> str:
    config, side = trained.config.model, trained.preprocessing.image_size
    lines = [
        f"# {name}\n",
        f"`{config.name}`, {parameter_count(trained.model):,} parameters, for images of {side}×{side} pixels and "
        f"{len(trained.classes)} classes.",
    ]
    if trained.update is not None:
        lines.append(f"Trained with vit_dist: {_WEIGHTS[trained.weights]} of update {trained.update:,}.")
    return "\n".join(lines) + "\n"


def _data(trained: TrainedModel) -> str:
    data, preprocessing = trained.config.data, trained.preprocessing
    side = preprocessing.image_size
    more = len(trained.names) - _LISTED
    classes = ", ".join(f"`{name}`" for name in trained.names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")
    lines = ["## Data\n"]
    if trained.update is not None:
        lines.append(f"- data: {data.name or ('folder' if data.root else 'digits')}")
    lines += [
        f"- classes: {classes}",
        f"- images: {trained.channels} × {side} × {side}, (value/255 - mean) / std",
        f"- mean: {list(preprocessing.mean)}",
        f"- std: {list(preprocessing.std)}",
    ]
    return "\n".join(lines) + "\n"


def _figures(trained: TrainedModel, summary: Mapping[str, Any]) -> str:
    """The run's figures; those of metrics only where they are of these very weights."""
    rows = [f"- {name}: {value}" for name, value in _of_the_run(summary)]
    best = summary.get("best")
    same = trained.weights == summary["weights"]
    tested = same and trained.update == (best["update"] if best else summary["updates"])
    measured = {
        "test": summary.get("test") if tested else None,
        "val": summary.get("final") if same and trained.update == summary["updates"] else None,
    }
    if tested and best:
        rows.append(f"- chosen by {best['metric']} of val: {_number(best['value'])}")
    table = [
        f"| {split} | {_number(of.get('top1'))} | {_number(of.get('top5'))} | {_number(of.get('loss'))} |"
        for split, of in measured.items()
        if of
    ]
    if table:
        table = ["| split | top1 % | top5 % | loss |", "|---|---|---|---|", *table, ""]
    return "\n".join(["## Figures\n", *table, *rows]) + "\n"


def _of_the_run(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "trained for", f"{summary['epochs']:.4g} epochs, {summary['updates']:,} updates"
    yield "time", duration(summary["train_seconds"])
    yield "on", f"{summary['world_size']} × {summary['device']}, {summary['precision']}"
    if summary["samples_per_second"]:
        yield "speed", f"{summary['samples_per_second']:,.0f} images/s"


def _number(value: Any) -> str:
    """Four digits of a number, the text that stands for one, or nothing."""
    return "" if value is None else str(value) if isinstance(value, str) else f"{value:.4g}"


def _recipe(config: Config) -> str:
    """The fields that can change a result and are not the defaults, as YAML."""
    defaults, sections = Config().fields(), dict[str, list[str]]()
    for name, value in config.fields(changes_result=True).items():
        if value != defaults[name]:
            section, _, field = name.partition(".")
            # JSON is YAML.
            sections.setdefault(section, []).append(f"  {field}: {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(f"{section}:\n{''.join(lines)}" for section, lines in sections.items())


def _use(trained: TrainedModel) -> str:
    parts = ["## Use\n"]
    mode = {1: "L", 3: "RGB"}.get(trained.channels)
    if mode:
        parts.append(f"```python\n{_SNIPPET.format(mode=mode)}```\n")
    parts.append("```\nvit-dist predict . picture.png\n```")
    return "\n".join(parts) + "\n"
