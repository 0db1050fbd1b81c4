"""Export a trained model as an ONNX file, which is published once onnxruntime gave the same logits as torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.errors import UserError, one_line
from vit_dist.export.verify import check_same_logits, random_pixels, silence_libraries
from vit_dist.files import publish, staged
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import eval_mode

# All supported versions of torch write it without a conversion, and it has antialiased resizing.
_OPSET = 18
BATCHES = (1, 3, 16)
# Relative to max(1, largest |logit|): float32 arithmetic in another library.
_TOLERANCE = 1e-4
# A protobuf message must be smaller than 2 GiB; the graph takes some mebibytes of it in addition to the weights.
_LARGEST = 2**31 - 2**23


@dataclass(frozen=True)
class OnnxCheck:
    """The comparison of an ONNX file with torch: the largest difference between logits over `images` random images.

    opset, bytes: those of the file.
    """

    largest_difference: float
    images: int
    opset: int
    bytes: int


def export_onnx(
    trained: TrainedModel, path: Path, *, preprocess: bool = False, source: Mapping[str, Any], output: str = "logits"
) -> OnnxCheck:
    """Write an ONNX file: `input` [batch, channels, side, side] → `output`, logits float32 [batch, classes].

    The input is normalised float32, or uint8 pixels with `preprocess`, which puts the normalisation into the graph.
    source: the origin of the model, saved in the file's metadata with its preprocessing and classes. output: what it
    is, for that metadata; the classes are left out if it is no logits. Raises UserError if packages are missing, the
    file would be too large or cannot be written, or its logits differ.
    """
    pixels = random_pixels(trained, sum(BATCHES))
    images = trained.preprocessing.normalise(pixels)
    metadata = _metadata(trained, preprocess, source, output)
    model = _LogitsModel(trained, preprocess)

    def expected() -> Tensor:
        logits: Tensor = trained.model(images)
        return logits.float()

    return write_graph(model, pixels if preprocess else images, expected, path, metadata, trained.config.model.name)


def write_graph(
    model: nn.Module,
    inputs: Tensor,
    expected: Callable[[], Tensor],
    path: Path,
    metadata: Mapping[str, str],
    name: str,
) -> OnnxCheck:
    """Write a module that takes one tensor as an ONNX file, `input` → `output`, once onnxruntime gave what torch does.

    inputs: `sum(BATCHES)` examples. expected: computes what torch gives of them. name: of the model, for errors.
    Raises UserError.
    """
    _require_onnx()
    tensors = (*model.parameters(), *model.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST:
        raise UserError(
            f"{path}: {size / 2**30:.1f} GiB of weights, but an ONNX file holds at most 2: export a timm folder instead"
        )
    if path.is_dir():
        raise UserError(f"{path}: is a folder: name a file, such as {path / 'model.onnx'}")
    import onnx

    path = path.expanduser().absolute()
    with staged(path) as hidden:
        hidden.touch()
        proto = _to_onnx(model, inputs[:2], name)
        onnx.helper.set_model_props(proto, metadata)
        hidden.write_bytes(proto.SerializeToString())
        made = _run(hidden, inputs, name)
        with eval_mode(model):
            largest = check_same_logits(made, expected(), _TOLERANCE, f"{name} in onnxruntime", "a timm folder")
        check = OnnxCheck(largest, sum(BATCHES), _OPSET, hidden.stat().st_size)
        publish(hidden, path)
    return check


class _LogitsModel(nn.Module):
    """A model as it is exported: images → logits float32 [batch, classes]. preprocess: images are uint8 pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedModel, preprocess: bool) -> None:
        super().__init__()
        self.model = trained.model
        self.preprocess = preprocess
        for name, values in (("mean", trained.preprocessing.mean), ("std", trained.preprocessing.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.preprocess:
            images = (images.float() / 255 - self.mean) / self.std
        logits: Tensor = self.model(images)
        return logits.float()


def _require_onnx() -> None:
    """Raise UserError if a package that the export needs is not installed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export: {', '.join(missing)} not installed: pip install {' '.join(missing)}")


def _to_onnx(model: nn.Module, example: Tensor, name: str) -> Any:
    """Return a model as a checked ModelProto that contains its weights. Raises UserError if torch cannot export it."""
    import onnx

    try:
        with silence_libraries(), eval_mode(model), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: "batch"},),
                opset_version=_OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        proto = program.model_proto
        # The exporter records the source lines of each node, with the paths of files on this machine.
        graph = proto.graph
        tensors = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
        for part in (graph, *graph.node, *tensors):
            part.ClearField("metadata_props")
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # of many types, since a model may run any code
        raise UserError(
            f"model.name: torch.onnx cannot export {name}: {one_line(error, 200)}: export a timm folder instead"
        ) from None
    return proto


def _metadata(trained: TrainedModel, preprocess: bool, source: Mapping[str, Any], output: str) -> dict[str, str]:
    """Return an ONNX file's metadata: keys with JSON values."""
    preprocessing = trained.preprocessing
    mode = {1: "grey", 3: "RGB"}.get(trained.channels, "channels")
    last_step = "uint8" if preprocess else "value / 255; (value - mean) / std"
    steps = f"{mode}, upright as EXIF says, on white; {preprocessing.resizing()}; {last_step}"
    fields = {
        "image_size": preprocessing.image_size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop": preprocessing.crop,
        "channels": trained.channels,
        "interpolation": preprocessing.interpolation,
        "fit": preprocessing.fit,
        "input": "uint8 pixels" if preprocess else "normalised float32",
        "steps": steps,
        "output": output,
    }
    values = {"preprocessing": fields, "classes": trained.names, "source": dict(source)}
    if output != "logits":
        del values["classes"]
    elif trained.names != trained.classes:
        values["labels"] = trained.classes
    return {name: json.dumps(value, ensure_ascii=False, default=str) for name, value in values.items()}


def _run(path: Path, inputs: Tensor, name: str) -> Tensor:
    """Return the outputs of onnxruntime for inputs in batches of several sizes. Raises UserError if it does not run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    outputs = []
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for batch in torch.split(inputs, list(BATCHES)):
            outputs.append(torch.from_numpy(session.run(["output"], {"input": batch.numpy()})[0]))
    except Exception as error:  # onnxruntime's have no common base class
        reason = f"onnxruntime cannot run {name}: {one_line(error, 200)}"
        raise UserError(f"model.name: {reason}: export a timm folder instead") from None
    return torch.cat(outputs)
