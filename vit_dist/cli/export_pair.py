"""The `export` command for a model of two towers: two ONNX files, or a folder for open_clip or, of images, for timm."""

from __future__ import annotations

import shlex
from pathlib import Path

from vit_dist.export.pair_card import pair_card
from vit_dist.inference.load import TrainedModel
from vit_dist.version import __version__


def export_two_towers(
    trained: TrainedModel, name: str, out: Path, weights: str, *, preprocess: bool, format: str
) -> None:
    """Export a model and print what was written. format: of a folder. Raises UserError."""
    text, side = trained.config.text, trained.preprocessing.image_size
    if out.suffix.lower() == ".onnx":
        from vit_dist.export.pair_onnx import export_pair

        source = {"model": name, "weights": trained.weights, "update": trained.update, "vit_dist": __version__}
        pixels = "pixels uint8" if preprocess else "normalised float32"
        inputs = (
            f"{pixels} [images, {trained.channels}, {side}, {side}]",
            f"tokens int64 [texts, {text.context_length}] of {text.tokenizer}",
        )
        found = export_pair(trained, out, preprocess=preprocess, source=source)
        for (path, check), given in zip(found.items(), inputs, strict=True):
            print(f"{path}: {name}{weights}; {check.bytes / 2**20:.1f} MiB")
            print(f"  input: {given}; opset {check.opset}")
            print(f"  output: embeddings of length 1, float32 [·, {text.embed_dim}]")
            print(f"  largest difference from torch: {check.largest_difference:.1e} over {check.images} inputs")
        return
    card = pair_card(trained, trained.config.run.name or out.name)
    quoted = shlex.quote(str(out))
    if format == "timm":
        from vit_dist.export.pair_onnx import image_tower
        from vit_dist.export.timm_folder import export_timm

        export_timm(image_tower(trained), out, card=card)
        print(
            f'{out}: the image tower of {name}{weights}; timm.create_model("local-dir:{out}", pretrained=True) loads it'
        )
        print(f"  output: embeddings [images, {text.embed_dim}], not yet divided by their length")
        return
    from vit_dist.export.open_clip_folder import export_open_clip

    difference = export_open_clip(trained, out, card=card)
    print(f'{out}: {name}{weights}; open_clip.create_model("local-dir:{out}") loads it')
    if difference is None:
        print("  not compared with open_clip, which is not installed: pip install open_clip_torch")
    else:
        print(f"  largest difference of an embedding from open_clip's: {difference:.1e}")
    print(f"  on the hub: hf upload OWNER/NAME {quoted}")
