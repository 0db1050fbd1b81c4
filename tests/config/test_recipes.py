"""The shipped recipes: their commands, and the published ones against their publications."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data.auto_augment import RandAugment
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torchvision.transforms import v2

from vit_dist.checkpointing.state import TrainState
from vit_dist.cli import main
from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig
from vit_dist.config.recipe import RECIPES
from vit_dist.data.augmentation.transforms import TrainingTransform
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import Stream
from vit_dist.models.build import build_model, drop_path_depth
from vit_dist.models.forward import parameter_count
from vit_dist.models.vit import ViT
from vit_dist.optim.optimizers import build_optimizer, parameter_groups, peak_lr
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.losses import Loss
from vit_dist.training.update import Updater

# ImageNet's 1,281,167 training images without the 1 % that is held out.
IMAGENET = 1_268_355
CLASSES = 10
# Settings with which the loop of a recipe takes seconds.
UPDATES, WARMUP, SAMPLES = 100, 20, 100
SMALL = {
    "data.image_size": 32,
    "batch.global_size": 12,
    "batch.micro_size": 6,
    "schedule.warmup": f"{WARMUP} updates",
    "train.duration": f"{UPDATES} updates",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_in_a_recipe_trains_it(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = [line.removeprefix("#").strip() for line in comments if "vit-dist train" in line]
    assert len(commands) == 1
    command = re.sub(r"\s{2,}\(.*\)$", "", commands[0])
    words = shlex.split(command.replace("[", "").replace("]", "").replace("|RUN|", " RUN ").split(" RUN ")[0])
    assert words[:2] == ["vit-dist", "train"]
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert all(flag.startswith("--") for flag in flags)
    overrides = {flag.removeprefix("--"): value for flag, value in flags.items()}
    config = Config.load(overrides.pop("config", None), overrides)
    assert config == Config.load(path.stem, overrides)
    assert Config.load(path.stem) == Config.load(path)


def test_mnist_reference_has_the_settings_of_the_exercise() -> None:
    config = Config.load("mnist_reference")
    assert config.augment == AugmentConfig(rotate=7, translate=0.1)
    assert (config.data.mean, config.data.std) == ((0.1307,), (0.3081,))
    assert (config.loss.label_smoothing, config.batch.global_size) == (0.1, 128)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.clip_norm) == (1e-3, 1e-4, 1.0)


def test_the_learning_rate_of_big_visions_plain_vit() -> None:
    config = Config.load("imagenet_vit_s16_90ep")
    plan = Plan.from_config(config, IMAGENET, 1)
    assert 1_281_167 - round(config.data.val_fraction * 1_281_167) == IMAGENET
    assert plan.updates == round(90 * IMAGENET / 1024) == 111_477
    assert plan.warmup == 10_000
    peak = peak_lr(config.optimizer, config.batch.global_size)
    assert peak == 1e-3

    def published(step: int) -> float:
        """big_vision's create_learning_rate_schedule, for decay_type cosine."""
        progress = min(1.0, max(0.0, (step - 10_000) / (plan.updates - 10_000)))
        return 1e-3 * 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, step / 10_000)

    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = Schedule(config.schedule, optimizer, plan, peak)
    for update in range(plan.updates):
        # Ours begins the warmup one update further on, and is at the peak one update sooner; then they are the same.
        step = update + 1 if update < 10_000 else update
        rate = optimizer.param_groups[0]["lr"]
        assert math.isclose(rate, published(step), rel_tol=1e-9, abs_tol=1e-15)
        assert abs(rate - published(update)) <= 1.001e-7
        schedule.step()
    assert published(plan.updates) == 0
    assert rate < 1e-12


@pytest.fixture(scope="module")
def plain_vit() -> ViT:
    model = build_model(Config.load("imagenet_vit_s16_90ep").model, classes=1000, channels=3, image_size=224, seed=0)
    assert isinstance(model, ViT)
    return model


def test_big_visions_plain_vit_decays_only_kernels(plain_vit: ViT) -> None:
    config = Config.load("imagenet_vit_s16_90ep").optimizer
    names = {id(parameter): name for name, parameter in plain_vit.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]}
              for group in parameter_groups(config, plain_vit)}  # fmt: skip
    kernels = {"patch_embed.proj.weight", "pre_logits.0.weight", "head.weight"}
    for block in range(12):
        kernels |= {f"blocks.{block}.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert groups == {0.1: kernels, 0.0: set(names.values()) - kernels}
    # AdamW's decay is times the rate, big_vision's is not: at the peak they are the same.
    assert config.weight_decay * config.lr == pytest.approx(1e-4)
    assert (config.name, config.clip_norm, config.betas, config.layer_decay) == ("adamw", 1.0, (), 1.0)


def test_big_visions_plain_vit_is_built_as_published(plain_vit: ViT) -> None:
    assert parameter_count(plain_vit) == 22_122_472
    assert plain_vit.cls_token is None
    assert not isinstance(plain_vit.pos_embed, nn.Parameter)
    assert plain_vit.pos_embed.shape == (1, 196, 384)
    assert isinstance(plain_vit.norm, nn.LayerNorm)
    assert plain_vit.norm.eps == 1e-6
    weights = {name: parameter.detach() for name, parameter in plain_vit.named_parameters()}
    assert weights["head.weight"].eq(0).all()
    assert weights["head.bias"].eq(0).all()
    for block in range(12):
        for name, outward, inward in (("attn.proj", 384, 384), ("mlp.fc1", 1536, 384), ("mlp.fc2", 384, 1536)):
            kernel, bound = weights[f"blocks.{block}.{name}.weight"], math.sqrt(6 / (outward + inward))
            assert kernel.shape == (outward, inward)
            assert 0.999 * bound < kernel.abs().max().item() <= bound
            assert kernel.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert weights[f"blocks.{block}.mlp.fc1.bias"].std().item() == pytest.approx(1e-6, rel=0.1)
        assert weights[f"blocks.{block}.attn.qkv.bias"].eq(0).all()
    kernel, std = weights["patch_embed.proj.weight"], (16 * 16 * 3) ** -0.5
    assert kernel.std().item() == pytest.approx(std, rel=0.01)
    assert 0.999 < kernel.abs().max().item() / (2 * std / 0.87962566) <= 1
    assert weights["pre_logits.0.weight"].std().item() == pytest.approx(384**-0.5, rel=0.01)


@pytest.mark.parametrize(("name", "epochs"), [("imagenet_vit_s16_90ep", 90), ("imagenet_vit_s16_300ep", 300)])
def test_big_visions_plain_vit_augments_as_published(name: str, epochs: int) -> None:
    config = Config.load(name)
    expected = AugmentConfig(crop_min=0.05, flip=0.5, auto=config.augment.auto, mixup=0.2)
    assert dataclasses.replace(config.augment, mix_prob=1.0) == expected
    transform = TrainingTransform(config.augment, config.data.mean, 224, None)
    (step,) = transform.steps
    assert isinstance(step, RandAugment)
    assert (step.num_layers, len(step.ops)) == (2, 15)
    assert {(op.magnitude, op.magnitude_std) for op in step.ops} == {(10, 0)}
    # The inception crop: from a twentieth of the area to all of it.
    assert transform.crop_min == 0.05
    assert (config.data.mean, config.data.std) == ((0.5,) * 3, (0.5,) * 3)  # values in -1 … 1
    assert (config.batch.global_size, config.train.duration) == (1024, f"{epochs} epochs")
    assert (config.loss.name, config.loss.label_smoothing) == ("cross_entropy", 0.0)
    plain = Config.load("imagenet_vit_s16_90ep")
    assert dataclasses.replace(config, train=plain.train, run=plain.run) == plain


@pytest.mark.parametrize(
    ("name", "side", "lr", "drop_path", "parameters"),
    [
        ("imagenet_deit3_s16", 224, 4e-3, 0.05, 22_059_496),
        ("imagenet_deit3_b16", 192, 3e-3, 0.2, 86_545_384),
    ],
)
def test_deit3_is_set_up_as_published(name: str, side: int, lr: float, drop_path: float, parameters: int) -> None:
    config = Config.load(name)
    with torch.device("meta"):
        whole_model = build_model(config.model, classes=1000, channels=3, image_size=side, seed=0)
    assert parameter_count(whole_model) == parameters
    shallow = Config.load(name, {"model.args": {"depth": 3}}).model
    model: Any = build_model(shallow, classes=1000, channels=3, image_size=side, seed=0)
    for block in model.blocks:
        assert block.ls1.gamma.detach().eq(1e-4).all()
        assert block.ls2.gamma.detach().eq(1e-4).all()
    assert [block.drop_path2.drop_prob for block in model.blocks[1:]] == pytest.approx([drop_path / 2, drop_path])
    assert config.data.image_size == (0 if side == 224 else side)

    ours = {group["weight_decay"]: {id(p) for p in group["params"]}
            for group in build_optimizer(config.optimizer, model, lr).param_groups}  # fmt: skip
    theirs = create_optimizer_v2(model, "lamb", weight_decay=0.05)
    assert ours == {group["weight_decay"]: {id(p) for p in group["params"]} for group in theirs.param_groups}
    assert set(ours) == {0.05, 0.0}
    assert type(build_optimizer(config.optimizer, model, lr)) is type(theirs)
    assert (config.optimizer.name, peak_lr(config.optimizer, 2048), config.batch.global_size) == ("timm/lamb", lr, 2048)

    assert (config.loss.name, config.loss.label_smoothing) == ("bce", 0.0)
    assert config.augment == AugmentConfig(
        crop_min=0.08, flip=0.5, auto="3a", color_jitter=0.3, mixup=0.8, cutmix=1.0, repeats=3
    )
    steps: list[Any] = TrainingTransform(config.augment, (0.485, 0.456, 0.406), side, None).steps
    auto, jitter = steps
    assert sorted(op.name for (op,) in auto.policy) == ["Desaturate", "GaussianBlurRand", "Solarize"]
    assert isinstance(jitter, v2.ColorJitter)
    assert {tuple(limits) for limits in (jitter.brightness, jitter.contrast, jitter.saturation)} == {(0.7, 1.3)}
    plan = Plan.from_config(config, IMAGENET, 1)
    assert plan.warmup == math.ceil(5 * IMAGENET / 2048)
    assert plan.updates == math.ceil(800 * IMAGENET / 2048)


def pictures() -> MemorySource:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (SAMPLES, 3, 32, 32), dtype=np.uint8)
    return MemorySource(pixels, generator.integers(0, CLASSES, SAMPLES))


def ours(config: Config, model: nn.Module, preprocessing: Preprocessing) -> tuple[list[float], list[list[Batch]]]:
    """Return the losses of the first updates by our loop in float64, and the batches of each."""
    runtime = Runtime(config.run, "fp32")
    plan = Plan.from_config(config, SAMPLES, 1)
    depth = drop_path_depth(model)
    stream = Stream(
        all_of(pictures()), plan, preprocessing, config.augment, runtime, workers=0, classes=CLASSES,
        drop_path_depth=depth,
    )  # fmt: skip
    prepared = runtime.prepare(model.train())
    lr = peak_lr(config.optimizer, config.batch.global_size)
    optimizer = build_optimizer(config.optimizer, model, lr)
    schedule = Schedule(config.schedule, optimizer, plan, lr)
    clip_norm = config.optimizer.clip_norm
    updater = Updater(prepared, Loss(config.loss), optimizer, schedule, TrainState(), runtime, clip_norm=clip_norm)
    losses, windows = [], []
    for position in range(plan.updates):
        window = [
            dataclasses.replace(batch, images=batch.images.double(), targets=batch.targets.double())
            for batch in stream.window(position)
        ]
        updater.update(iter(window), plan.micro_batches_per_rank, plan.weight(position))
        loss, _, weight = updater.take_sums()
        assert weight == config.batch.global_size
        losses.append(loss / weight)
        windows.append(window)
    updater.finish_previous()
    runtime.end()
    return losses, windows


def plain(
    model: nn.Module,
    forward: Callable[[list[Batch]], Tensor],
    criterion: nn.Module,
    optimizer: Optimizer,
    windows: list[list[Batch]],
    peak: float,
) -> Iterator[float]:
    """Return the losses of a plain loop with timm and torch over the same tensors."""
    model.train()
    for update, window in enumerate(windows):
        rate = peak * (update + 1) / WARMUP
        if update >= WARMUP:
            rate = peak * 0.5 * (1 + math.cos(math.pi * (update - WARMUP) / (UPDATES - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = criterion(forward(window), torch.cat([batch.targets for batch in window]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def test_big_visions_plain_vit_trains_like_a_plain_loop_with_timm() -> None:
    small = {"model.width": 24, "model.depth": 2, "model.heads": 2, "model.patch_size": 8}
    config = Config.load("imagenet_vit_s16_90ep", {**SMALL, **small})
    model = build_model(config.model, classes=CLASSES, channels=3, image_size=32, seed=0).double()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses, windows = ours(config, model, Preprocessing(32, config.data.mean, config.data.std))

    reference = VisionTransformer(
        img_size=32, patch_size=8, num_classes=CLASSES, embed_dim=24, depth=2, num_heads=2, class_token=False,
        global_pool="avg", fc_norm=False,
    )  # fmt: skip
    hidden = nn.Linear(24, 24)
    reference.head = nn.Sequential(OrderedDict(pre_logits=hidden, tanh=nn.Tanh(), head=reference.head))
    reference.double()
    names = {"pre_logits.0.": "head.pre_logits.", "head.": "head.head."}
    for name in list(start):
        for old, new in names.items():
            if name.startswith(old):
                start[name.replace(old, new)] = start.pop(name)
                break
    reference.load_state_dict({**start, "pos_embed": model.get_buffer("pos_embed")}, strict=True)
    assert reference.pos_embed is not None
    reference.pos_embed.requires_grad_(False)
    optimizer = AdamW(param_groups_weight_decay(reference, 0.1, reference.no_weight_decay()), lr=1e-3)

    def forward(window: list[Batch]) -> Tensor:
        logits: Tensor = reference(torch.cat([batch.images for batch in window]))
        return logits

    expected = list(plain(reference, forward, SoftTargetCrossEntropy(), optimizer, windows, 1e-3))
    assert losses[0] == pytest.approx(math.log(CLASSES), abs=1e-6)  # the head starts at 0
    assert min(losses[50:]) < losses[0] - 0.1
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    assert any(batch.targets.gt(0).sum(1).eq(2).any() for window in windows for batch in window)


def test_deit3_trains_like_a_plain_loop_with_timm() -> None:
    args = {"init_values": 1e-4, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    config = Config.load("imagenet_deit3_s16", {**SMALL, "model.args": args})
    model = build_model(config.model, classes=CLASSES, channels=3, image_size=32, seed=0).double()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses, windows = ours(config, model, Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    reference = timm.create_model(
        "deit3_small_patch16_224", img_size=32, num_classes=CLASSES, drop_path_rate=0.05, **args
    ).double()
    reference.load_state_dict(start, strict=True)
    optimizer = create_optimizer_v2(reference, "lamb", lr=4e-3, weight_decay=0.05)

    given: list[Tensor] = []
    dropping = [module for module in reference.modules() if isinstance(module, timm.layers.DropPath)]

    def dropped(number: int, rate: float) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            kept = (given[0][:, number // 2, number % 2] >= rate).double()
            return x * kept[:, None, None] / (1 - rate)

        return forward

    for number, module in enumerate(dropping):
        module.forward = dropped(number, module.drop_prob)

    def forward(window: list[Batch]) -> Tensor:
        """Drop-path by the draws of each batch."""
        outputs = []
        for batch in window:
            assert batch.drop_path is not None
            given[:] = [batch.drop_path]
            outputs.append(reference(batch.images))
        return torch.cat(outputs)

    expected = list(plain(reference, forward, BinaryCrossEntropy(smoothing=0.0), optimizer, windows, 4e-3))
    assert min(losses[50:]) < losses[0] - 0.1
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    # Three copies of a sample in a batch.
    ids = torch.cat([batch.ids for batch in windows[0]]).tolist()
    assert sorted(ids.count(index) for index in set(ids)) == [3, 3, 3, 3]


def test_finetune_starts_from_timms_weights_and_is_planned_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load("finetune")
    assert (config.model.name, config.model.pretrained) == ("timm/vit_small_patch16_224", "timm")
    assert Config.load("finetune", {"model.pretrained": "runs/x"}).model.pretrained == "runs/x"

    def reaches(*given: object, **more: object) -> None:
        pytest.fail("it asks for what it has not got")

    monkeypatch.setattr("socket.socket.connect", reaches)
    monkeypatch.setattr("socket.getaddrinfo", reaches)
    small = ["--data.name", "digits", "--data.image_size", "32", "--model.name", "timm/test_vit"]
    assert main(["plan", "--config", "finetune", *small]) == 0
    assert "timm/test_vit" in capsys.readouterr().out
