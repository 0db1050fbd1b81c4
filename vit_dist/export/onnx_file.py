"""A trained model as an ONNX file. It gets its name after it ran beside torch and gave the same logits."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.errors import UserError, one_line
from vit_dist.export.verify import INTERPOLATION, check_same_logits, random_pixels, silence_libraries
from vit_dist.files import publish, staged
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import eval_mode

# All versions of torch in use write it without converting, and it has antialiased resizing.
_OPSET = 18
_BATCHES = (1, 3, 16)
# Of max(1, largest |logit|): float32 in another library.
_TOLERANCE = 1e-4
# A protobuf message ends below 2 GiB; the graph beside the weights takes some mebibytes.
_LARGEST = 2**31 - 2**23


@dataclass(frozen=True)
class OnnxCheck:
    """An ONNX file that was run beside torch: the largest difference of a logit over so many images; its opset and
    bytes."""

    largest_difference: float
    images: int
    opset: int
    bytes: int


def export_onnx(trained: TrainedModel, path: Path, *, preprocess: bool = False, source: Mapping[str, Any]) -> OnnxCheck:
    """Writes an ONNX file: `input` [batch, channels, side, side] → `output`, logits float32 [batch, classes].

    input: float32, normalised; with `preprocess` pixels uint8, and normalising is in the graph. source: where the
    model is from, for the file's metadata beside its preprocessing and classes.
    Raises UserError where packages are missing, the file would be too large, cannot be written, or is not the model.
    """
    _refuse_without_onnx()
    tensors = (*trained.model.parameters(), *trained.model.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST:
        raise UserError(
            f"{path}: {size / 2**30:.1f} GiB of weights, and ONNX files end at 2: export a timm folder instead"
        )
    if path.is_dir():
        raise UserError(f"{path}: is a folder: name a file, as {path / 'model.onnx'}")
    import onnx

    path = path.expanduser().absolute()
    with staged(path) as hidden:
        hidden.touch()
        proto = _onnx(_Logits(trained, preprocess), trained, preprocess)
        onnx.helper.set_model_props(proto, _properties(trained, preprocess, source))
        hidden.write_bytes(proto.SerializeToString())
        check = OnnxCheck(_run_beside(hidden, trained, preprocess), sum(_BATCHES), _OPSET, hidden.stat().st_size)
        publish(hidden, path)
    return check


class _Logits(nn.Module):
    """`input` → logits float32 [batch, classes]: of normalised floats, or of pixels uint8 where it prepares them."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: TrainedModel, prepares: bool) -> None:
        super().__init__()
        self.model = trained.model
        self.prepares = prepares
        for name, values in (("mean", trained.preprocessing.mean), ("std", trained.preprocessing.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.prepares:
            images = (images.float() / 255 - self.mean) / self.std
        logits: Tensor = self.model(images)
        return logits.float()


def _refuse_without_onnx() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export: needs {', '.join(missing)}: pip install 'vit_dist[onnx]'")


def _onnx(graph: _Logits, trained: TrainedModel, preprocess: bool) -> Any:
    """The checked ModelProto of a graph, its weights inside. Raises UserError."""
    import onnx

    example = random_pixels(trained, 2) if preprocess else trained.preprocessing.normalise(random_pixels(trained, 2))
    try:
        with silence_libraries(), eval_mode(graph), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                graph,
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
        # The exporter notes the lines of code that each node is from, with the paths of this machine's files.
        made = proto.graph
        tensors = (*made.input, *made.output, *made.value_info, *made.initializer)
        for part in (made, *made.node, *tensors):
            part.ClearField("metadata_props")
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # of many kinds, and any model may be told to do anything
        name = trained.config.model.name
        raise UserError(
            f"model.name: torch.onnx cannot write {name}: {one_line(error, 200)}: export a timm folder instead"
        ) from None
    return proto


def _properties(trained: TrainedModel, preprocess: bool, source: Mapping[str, Any]) -> dict[str, str]:
    """An ONNX file's metadata: keys and JSON."""
    preprocessing = trained.preprocessing
    colours = {1: "grey", 3: "RGB"}.get(trained.channels, "channels")
    last = "uint8" if preprocess else "value / 255; (value - mean) / std"
    prepared = {
        "image_size": preprocessing.image_size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop": preprocessing.crop,
        "channels": trained.channels,
        "interpolation": INTERPOLATION,
        "input": "uint8 pixels" if preprocess else "normalised float32",
        "steps": f"{colours}; short side to round(image_size / crop), {INTERPOLATION}; centre crop; {last}",
        "output": "logits",
    }
    values = {"preprocessing": prepared, "classes": trained.names, "source": dict(source)}
    if trained.names != trained.classes:
        values["labels"] = trained.classes
    return {name: json.dumps(value, ensure_ascii=False, default=str) for name, value in values.items()}


def _run_beside(path: Path, trained: TrainedModel, preprocess: bool) -> float:
    """The largest difference of a logit between onnxruntime's and torch's, in batches of several sizes.

    Raises UserError where it is too large, the likeliest class is another, or the file does not run.
    """
    import onnxruntime

    name, options = trained.config.model.name, onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    found, pixels = [], random_pixels(trained, sum(_BATCHES))
    images = trained.preprocessing.normalise(pixels)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for batch in torch.split(pixels if preprocess else images, list(_BATCHES)):
            found.append(torch.from_numpy(session.run(["output"], {"input": batch.numpy()})[0]))
    except Exception as error:  # onnxruntime's are of no common kind
        reason = f"onnxruntime does not run {name}: {one_line(error, 200)}"
        raise UserError(f"model.name: {reason}: export a timm folder instead") from None
    with eval_mode(trained.model):
        expected = trained.model(images).float()
    return check_same_logits(torch.cat(found), expected, _TOLERANCE, f"{name} in onnxruntime", "a timm folder")
