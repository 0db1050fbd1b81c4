"""Compare an exported ONNX file with torch over a whole test split, logits and speed, in one run.

vit-dist export RUN model.onnx
python benchmarks/onnx_export.py RUN model.onnx [DATA_ROOT]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import onnxruntime
import torch

from vit_dist.config.fields import RunConfig
from vit_dist.data.stream import EvaluationStream
from vit_dist.inference.load import load_model
from vit_dist.inference.splits import open_split
from vit_dist.models.forward import eval_mode
from vit_dist.runtime.runtime import Runtime


def main() -> None:
    """Give each batch of 256 to both in turn, so that a slow moment of the machine slows both."""
    trained = load_model(sys.argv[1], overrides={"data.root": sys.argv[3]} if len(sys.argv) > 3 else {})
    runtime = Runtime(RunConfig(device="cpu"), "fp32")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
    split = open_split(trained, "", None)
    stream = EvaluationStream(split.subset, trained.preprocessing, runtime, batch_size=256, workers=0)
    largest, seconds, seen, equal = 0.0, [0.0, 0.0], 0, 0
    with eval_mode(trained.model):
        for images, _, weights, _ in stream:
            start = time.perf_counter()
            ours = trained.model(images)
            middle = time.perf_counter()
            theirs = torch.from_numpy(session.run(["output"], {"input": images.numpy()})[0])
            seconds = [seconds[0] + middle - start, seconds[1] + time.perf_counter() - middle]
            real = weights > 0
            largest = max(largest, (ours - theirs)[real].abs().max().item())
            equal += int((ours.argmax(1) == theirs.argmax(1))[real].sum())
            seen += int(real.sum())
    print(f"{sys.argv[1]}, {split.name}: {seen} images, {Path(sys.argv[2]).stat().st_size / 2**20:.1f} MiB")
    print(f"largest difference of a logit {largest:.2e}; top-1 equal for {equal} of {seen}")
    rates = [seen / each for each in seconds]
    print(f"torch {rates[0]:,.0f} images/s, onnxruntime {rates[1]:,.0f}: ratio {rates[1] / rates[0]:.2f}")
    stream.close()
    runtime.end()


if __name__ == "__main__":
    main()
