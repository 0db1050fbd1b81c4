"""The `export` command: write a model as ONNX, or as a folder for timm and the Hugging Face Hub."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from vit_dist.errors import UserError
from vit_dist.formatting import weights_text
from vit_dist.inference.load import TrainedModel
from vit_dist.version import __version__

_NOT_WRITTEN = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".onxx", ".onx")


def export(name: str, out: Path, load: Callable[[], TrainedModel], *, preprocess: bool, format: str = "") -> None:
    """Export a model and print what was written. name: the model's, as the user wrote it. Raises UserError.

    format: of a folder, timm or open_clip; empty: timm, or open_clip of a model of two towers.
    """
    ending = out.suffix.lower()
    if ending in _NOT_WRITTEN:
        raise UserError(f"export: OUT is FILE.onnx or a folder, not {out}")
    if preprocess and ending != ".onnx":
        raise UserError("--preprocess: only for FILE.onnx: the config.json of a folder holds the preprocessing")
    if format and ending == ".onnx":
        raise UserError(f"--format: {format} is a folder: name OUT without .onnx")
    trained = load()
    weights = f", {weights_text(trained.weights)} of update {trained.update}" if trained.update is not None else ""
    from vit_dist.inference.zero_shot import has_two_towers

    if has_two_towers(trained):
        from vit_dist.cli.export_pair import export_two_towers

        export_two_towers(trained, name, out, weights, preprocess=preprocess, format=format or "open_clip")
        return
    if format == "open_clip":
        raise UserError(f"--format: open_clip is for runs on images and captions, and {name} is a classifier: timm")
    if ending == ".onnx":
        from vit_dist.export.onnx_file import export_onnx

        source = {"model": name, "weights": trained.weights, "update": trained.update, "vit_dist": __version__}
        exported = export_onnx(trained, out, preprocess=preprocess, source=source)
        print(f"{out}: {name}{weights}; {exported.bytes / 2**20:.1f} MiB")
        side, pixels = trained.preprocessing.image_size, "pixels uint8" if preprocess else "normalised float32"
        print(f"  input: {pixels} [images, {trained.channels}, {side}, {side}]; opset {exported.opset}")
        print(f"  output: logits [images, {len(trained.classes)}], one for each class")
        print(f"  largest difference from torch: {exported.largest_difference:.1e} over {exported.images} images")
        return
    from vit_dist.export.model_card import model_card
    from vit_dist.export.timm_folder import export_timm
    from vit_dist.run_folder.status import summary_of

    summary, problem = summary_of(Path(name).expanduser())
    if problem:
        print(f"note: {problem}: the model card has no results", file=sys.stderr)
    export_timm(trained, out, card=model_card(trained, summary, trained.config.run.name or out.name))
    print(f'{out}: {name}{weights}; timm.create_model("local-dir:{out}", pretrained=True) loads it')
    print(f"  on the hub: hf upload OWNER/NAME {shlex.quote(str(out))}")
