"""Distillation: a teacher's logits for the student's images, and runs that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.runs import train_captions_run
from vit_dist import Config, UserError, load, train
from vit_dist.config.fields import LossConfig, RunConfig
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of
from vit_dist.data.stream import Stream
from vit_dist.inference.load import load_run_model
from vit_dist.models.build import build_model
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.distillation import Teacher, build_teacher
from vit_dist.training.losses import Loss

DIGITS: dict[str, Any] = {
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.drop_path": 0.0,
    "batch.global_size": 48,
    "batch.micro_size": 16,
    "schedule.warmup": "1 updates",
    "train.duration": "8 updates",
    "evaluate.every": "4 updates",
    "log.every": "1 updates",
    "log.trackers": "none",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}
STUDENTS = Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def digits(folder: Path, **more: Any) -> Config:
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("digits", {**DIGITS, "run.dir": str(folder), **changes})


@pytest.fixture
def runtime() -> Any:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with strong dropout, which a teacher must switch off, and an average, which it must use."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    wide = {"model__width": 24, "model__dropout": 0.5, "model__drop_path": 0.5}
    train(digits(folder, **wide, optimizer__lr=1e-2, train__ema=0.5, train__duration="40 updates"))
    return folder


def pictures(channels: int = 3, classes: int = 3, side: int = 32) -> LabelledSplits:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5, channels, side, side), dtype=np.uint8)
    source = MemorySource(pixels, np.arange(5) % classes)
    names = tuple(f"class {i}" for i in range(classes))
    return LabelledSplits({"train": all_of(source)}, names, channels, side, (0.5,) * channels, (0.5,) * channels)


def pixels_of(data: LabelledSplits) -> NDArray[np.uint8]:
    source = data.splits["train"].source
    assert isinstance(source, MemorySource)
    return source.pixels


def seen(data: LabelledSplits, preprocessing: Preprocessing) -> Tensor:
    """Return the images in a student's preprocessing."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return normalise(torch.from_numpy(pixels_of(data)), preprocessing.image_size, mean, std)


def preprocessed(pixels: NDArray[np.uint8], side: int, mean: Any, std: Any) -> Tensor:
    """Resize uint8 images to `side` with Pillow and normalise them per channel with NumPy."""
    images = [
        [
            np.asarray(Image.fromarray(channel.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
            for channel in image
        ]
        for image in pixels
    ]
    normal = (np.array(images) / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    return torch.from_numpy(normal).float()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the weights of a timm ViT of 160 pixels with three classes."""
    torch.manual_seed(3)
    model = timm.create_model("test_vit", num_classes=3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def built(config: LossConfig, data: LabelledSplits, students: Preprocessing, runtime: Runtime) -> Teacher:
    teacher = build_teacher(config, data, students, runtime.device, runtime.autocast)
    assert teacher is not None
    return teacher


def test_a_timm_teacher_gets_images_in_its_own_preprocessing(weights: Path, runtime: Runtime) -> None:
    """The teacher has 160 pixels, mean and std ½; the student has 32 pixels and others."""
    config = LossConfig(teacher="timm/test_vit", teacher_weights=str(weights))
    teacher = built(config, pictures(), STUDENTS, runtime)
    original = timm.create_model("test_vit", num_classes=3).eval()
    original.load_state_dict(load_file(weights))
    with torch.no_grad():
        expected = original(preprocessed(pixels_of(pictures()), 160, [0.5] * 3, [0.5] * 3))
        unlike = original(preprocessed(pixels_of(pictures()), 160, STUDENTS.mean, STUDENTS.std))
    actual = teacher(seen(pictures(), STUDENTS))
    assert actual.shape == (5, 3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert (unlike - expected).abs().max() > 0.01


def test_a_timm_teacher_of_other_channels_gets_the_students_images(tmp_path: Path, runtime: Runtime) -> None:
    original = timm.create_model("test_vit", num_classes=3, in_chans=1, img_size=32).eval()
    save_file(original.state_dict(), tmp_path / "grey.safetensors")
    config = LossConfig(teacher="timm/test_vit", teacher_weights=str(tmp_path / "grey.safetensors"))
    preprocessing = Preprocessing(32, (0.4,), (0.2,))
    images = seen(pictures(channels=1), preprocessing)
    actual = built(config, pictures(channels=1), preprocessing, runtime)(images)
    with torch.no_grad():
        torch.testing.assert_close(actual, original(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [8, 12, 5])
def test_a_run_teaches_with_its_best_weights_and_its_own_preprocessing(run: Path, side: int, runtime: Runtime) -> None:
    data = pictures(channels=1, side=side)
    data = LabelledSplits(data.splits, tuple(str(i) for i in range(10)), 1, side, data.mean, data.std)
    own = load_run_model(run, "own")
    assert own.weights == "ema"
    students = Preprocessing(side, (0.1,), (0.7,))
    for path in (run, run / "checkpoints" / "best"):
        teacher = built(LossConfig(teacher=str(path)), data, students, runtime)
        actual = teacher(seen(data, students))
        with torch.no_grad():
            expected = own.model.eval()(preprocessed(pixels_of(data), 8, own.preprocessing.mean, own.preprocessing.std))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_never_trains(run: Path, runtime: Runtime) -> None:
    data = open_data(digits(run).data)
    preprocessing = Preprocessing(8, data.mean, data.std)
    teacher = built(LossConfig(teacher=str(run)), data, preprocessing, runtime)
    assert teacher.train() is teacher
    teacher.train(True)
    assert not any(module.training for module in teacher.modules())
    assert any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in teacher.modules())
    assert {parameter.requires_grad for parameter in teacher.parameters()} == {False}
    images = torch.randn(6, 1, 8, 8)
    first = teacher(images)
    assert torch.equal(first, teacher(images))
    assert not first.requires_grad

    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    logits = torch.zeros(6, 10, requires_grad=True)
    batch = Batch(images.requires_grad_(), torch.arange(6), torch.ones(6), torch.arange(6), None, 0)
    for config in (LossConfig(distillation="hard"), LossConfig(distillation="soft")):
        Loss(config, teacher)(logits, batch).sum().backward()
    assert logits.grad is not None
    assert images.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_teacher_computes_in_the_runs_precision(run: Path) -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "bf16")
    data = open_data(digits(run).data)
    teacher = built(LossConfig(teacher=str(run)), data, Preprocessing(8, data.mean, data.std), runtime)
    images = torch.randn(6, 1, 8, 8)
    half = teacher(images)
    runtime.end()
    assert half.dtype == torch.bfloat16
    own = load_run_model(run, "own")
    with torch.no_grad():
        torch.testing.assert_close(half.float(), own.model.eval()(images), rtol=0.1, atol=0.02)


def test_without_a_name_there_is_no_teacher(runtime: Runtime) -> None:
    assert build_teacher(LossConfig(), pictures(), STUDENTS, runtime.device, runtime.autocast) is None


@pytest.mark.parametrize(("classes", "channels"), [(10, 1), (3, 1), (10, 3)])
def test_a_teacher_of_other_classes_or_channels_is_refused(
    classes: int, channels: int, run: Path, runtime: Runtime
) -> None:
    """Data of ten classes in one channel, but with other names, is refused too."""
    with pytest.raises(UserError) as caught:
        build_teacher(
            LossConfig(teacher=str(run)), pictures(channels, classes), STUDENTS, runtime.device, runtime.autocast
        )
    assert str(caught.value) == (
        f"loss.teacher: {run} knows 10 classes (0, 1, 2 …) in 1 channel, the data is {classes} classes "
        f"(class 0, class 1, class 2{' …' if classes > 3 else ''}) in {channels} channel{'s' if channels > 1 else ''}: "
        "set a teacher of the same data"
    )


def test_weights_of_another_teacher_are_refused(weights: Path, tmp_path: Path, runtime: Runtime) -> None:
    config = LossConfig(teacher="timm/test_vit", teacher_weights=str(weights))
    with pytest.raises(UserError) as caught:
        build_teacher(config, pictures(classes=4), STUDENTS, runtime.device, runtime.autocast)
    assert str(caught.value) == (
        f"{weights}: of another model: head.bias is [3], the model's [4]; head.weight is [3, 64], the model's [4, 64]"
    )
    nowhere = tmp_path / "nowhere.safetensors"
    with pytest.raises(UserError) as caught:
        build_teacher(
            LossConfig(teacher="timm/test_vit", teacher_weights=str(nowhere)),
            pictures(),
            STUDENTS,
            runtime.device,
            runtime.autocast,
        )
    assert str(caught.value) == f"loss.teacher_weights: {nowhere} does not exist"


def test_a_missing_teacher_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError) as caught:
        build_teacher(LossConfig(teacher=str(tmp_path)), pictures(), STUDENTS, runtime.device, runtime.autocast)
    assert str(caught.value) == (
        f"loss.teacher: {tmp_path} is neither a run's folder with a checkpoint nor a checkpoint"
    )
    runtime.end()
    with pytest.raises(UserError) as caught:
        train(digits(tmp_path / "student", loss__teacher=str(tmp_path / "nothing")))
    assert str(caught.value) == (
        f"loss.teacher: {tmp_path / 'nothing'} is neither a run's folder with a checkpoint nor a checkpoint"
    )
    assert not (tmp_path / "student").exists()


def first_loss(config: Config, loss: Any) -> float:
    """Return the mean of `loss` (logits, teacher's logits, targets → one value each) over the first global batch."""
    runtime = Runtime(config.run, "fp32")
    data = open_data(config.data)
    preprocessing = Preprocessing(8, data.mean, data.std)
    plan = Plan.from_config(config, len(data.splits["train"]), 1)
    stream = Stream(data.splits["train"], plan, preprocessing, config.augment, runtime, workers=0)
    student = build_model(config.model, classes=10, channels=1, image_size=8, seed=config.run.seed)
    teacher = load_run_model(Path(config.loss.teacher), "own").model.eval()
    values: list[float] = []
    with torch.no_grad():
        for batch in stream.window(0):
            logits, taught = student(batch.images), teacher(batch.images)
            values += loss(logits.double(), taught.double(), batch.targets)[batch.weights > 0].tolist()
    runtime.end()
    assert len(values) == 48
    return float(np.mean(values))


def soft_loss(logits: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
    """Return the soft distillation loss at temperature 3."""
    teacher, student = (taught / 3).softmax(1), (logits / 3).softmax(1)
    return 9 * (teacher * (teacher / student).log()).sum(1)


def hard_loss(logits: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
    return -logits.softmax(1)[torch.arange(len(logits)), taught.argmax(1)].log()


def target_loss(logits: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy with label smoothing 0.1, as in the recipe."""
    logs = logits.log_softmax(1)
    return -0.9 * logs[torch.arange(len(logits)), targets] - 0.1 * logs.mean(1)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_distilled_run_learns_from_targets_and_teacher(kind: str, run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    settings = {"loss__teacher": str(run), "loss__distillation": kind, "loss__temperature": 3.0}
    config = digits(tmp_path / "student", **settings, loss__distillation_weight=0.7)
    finished = train(config)
    assert not finished.stopped
    lines = [line for line in read_metrics(config.folder / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) == 8
    of_teacher = first_loss(config, soft_loss if kind == "soft" else hard_loss)
    expected = 0.3 * first_loss(config, target_loss) + 0.7 * of_teacher
    assert lines[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs(first_loss(config, target_loss) - expected) > 0.002
    # The student's checkpoint does not hold the teacher, and the teacher's folder is unchanged.
    saved = load_file(config.folder / "checkpoints" / "last" / "model.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in finished.model.module.state_dict().items()
    }
    assert saved["pos_embed"].shape == (1, 4, 16)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_student_approaches_its_teacher(kind: str, run: Path, tmp_path: Path) -> None:
    config = digits(
        tmp_path / "student",
        loss__teacher=str(run),
        loss__distillation=kind,
        loss__distillation_weight=1.0,
        optimizer__lr=1e-2,
        train__duration="25 updates",
    )
    losses = [line["loss"] for line in train(config).history if line["kind"] == "train"]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_a_resumed_distillation_ends_as_one_without_a_stop(run: Path, tmp_path: Path) -> None:
    settings = {"loss__teacher": str(run), "loss__distillation": "soft", "schedule__name": "constant"}
    train(digits(tmp_path / "whole", **settings))
    train(digits(tmp_path / "parts", **settings, train__duration="4 updates"))
    train(digits(tmp_path / "parts", **settings))
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole_run, parts = (
            tmp_path / folder / "checkpoints" / "update_00000008" / name for folder in ("whole", "parts")
        )
        assert whole_run.read_bytes() == parts.read_bytes()


def test_a_timm_teacher_teaches_a_run(weights: Path, image_folder: Path, tmp_path: Path) -> None:
    config = Config.load(
        "folder",
        {
            **DIGITS,
            "data.root": str(image_folder),
            "data.image_size": 32,
            "data.workers": 0,
            "batch.global_size": 8,
            "batch.micro_size": 8,
            "train.duration": "2 updates",
            "loss.teacher": "timm/test_vit",
            "loss.teacher_weights": str(weights),
            "run.dir": str(tmp_path / "student"),
        },
    )
    finished = train(config)
    assert [line["update"] for line in finished.history if line["kind"] == "train"] == [1, 2]
    assert not finished.stopped


def test_a_teacher_may_have_batch_norm_and_its_errors_name_it(tmp_path: Path, runtime: Runtime) -> None:
    data = pictures()
    students = Preprocessing(32, (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    resnet = timm.create_model("test_resnet", num_classes=3)
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    config = LossConfig(teacher="timm/test_resnet", teacher_weights=str(tmp_path / "resnet.safetensors"))
    teacher = built(config, data, students, runtime)
    images = torch.randn(2, 3, 32, 32)
    assert teacher(images).shape == (2, 3)
    assert torch.equal(teacher(images), teacher(images))
    with pytest.raises(UserError, match=r"^loss.teacher: timm has no model test_vvit: did you mean"):
        built(LossConfig(teacher="timm/test_vvit", teacher_weights="x"), data, students, runtime)


@pytest.fixture(scope="module")
def captions_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_captions_run(tmp_path_factory)


def test_a_run_on_captions_teaches_by_its_zero_shot_logits(captions_run: Path, runtime: Runtime) -> None:
    model = load(captions_run, device="cpu")
    config = Config.load("digits", {"data.name": "digits_captions"})
    data, made = open_data(config.data), model.preprocess.preprocessing
    teacher = built(LossConfig(teacher=str(captions_run)), data, made, runtime)
    test = data.splits["test"]
    assert isinstance(test.source, MemorySource)
    pixels = torch.from_numpy(test.source.pixels[test.indices[:7]])
    with torch.no_grad():
        found = teacher(made.normalise(pixels)).softmax(1).numpy()
    assert np.abs(found - model.predict(list(pixels[:, 0].numpy())).probabilities).max() < 1e-5
