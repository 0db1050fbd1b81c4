"""timm's validation of an exported folder, by timm's own data set, loader and model: top-1 of a folder of classes.

python -m tests.export.timm_validation EXPORT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from torch import Tensor


def timm_validation(exported: Path, images: Path) -> tuple[float, dict[str, Tensor]]:
    """Return top-1 in percent, and the logits [classes] of each image file, by its path."""
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    dataset = create_dataset("", root=str(images))
    settings = resolve_model_data_config(model)
    loader = create_loader(
        dataset, **settings, batch_size=32, use_prefetcher=False, num_workers=0, persistent_workers=False,
        device=torch.device("cpu"),
    )  # fmt: skip
    with torch.inference_mode():
        batches = [(model(inputs), targets) for inputs, targets in loader]
    logits, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    names = [dataset.filename(index, absolute=True) for index in range(len(dataset))]
    hits = logits.argmax(1) == targets
    return 100 * hits.double().mean().item(), dict(zip(names, logits, strict=True))


if __name__ == "__main__":
    top1, logits_of = timm_validation(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"top-1 {top1:.4f} % of {len(logits_of):,} images")
