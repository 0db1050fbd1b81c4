"""The sides of peers.py: the trainer, timm's pieces, and Accelerate's loop, each with `files` and `resident`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from training import Training

from vit_dist.data.batch import Batch

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SMOOTHING, LR, DECAY, LOG_EVERY = 0.1, 1e-3, 0.05, 50
Fixed = tuple[Tensor, Tensor]


class Ours:
    """The trainer itself."""

    def __init__(self, own: argparse.Namespace, folder: Path, rest: list[str]) -> None:
        words = ["--data.root", str(folder), "--data.image_size", str(own.side), "--run.device", own.device]
        words += [
            "--run.auto",
            "[]",
            "--model.patch_size",
            "16",
            "--model.pool",
            "token",
        ]  # nothing is chosen from the data
        words += ["--augment.crop_min", "0.08", "--augment.flip", "0.5", "--loss.label_smoothing", str(SMOOTHING)]
        words += ["--data.mean", str(list(MEAN)), "--data.std", str(list(STD)), "--data.workers", str(own.workers)]
        words += ["--batch.global_size", str(own.batch), "--batch.micro_size", str(own.batch)]
        words += ["--train.precision", own.precision, "--train.compile", own.train_compile]
        words += ["--log.every", f"{LOG_EVERY} updates", "--model.name", "vit_tiny" if own.small else "vit_small"]
        words += ["--optimizer.lr", str(LR), "--optimizer.weight_decay", str(DECAY)]
        if own.device == "cpu":
            words += ["--run.threads", str(own.threads)]
        self.training = Training([*words, *rest])
        self.notes = self.training.components.notes

    def files(self, updates: int) -> int:
        return self.training.run(updates)

    def resident(self, updates: int, fixed: Fixed) -> int:
        images, targets = fixed
        batch = Batch(
            images, targets, torch.ones(len(images), device=images.device), torch.arange(len(images)), None, 1
        )
        updater, state = self.training.trainer.updater, self.training.trainer.state
        position = state.position
        for number in range(updates):
            updater.update([batch], 1, len(images))
            if (number + 1) % LOG_EVERY == 0:
                updater.take_sums()
        updater.finish_previous()
        state.position = position  # the stream goes on where it was
        self.training.runtime.synchronize()
        return updates * len(images)

    def close(self) -> None:
        self.training.close()


class Timm:
    """timm's pieces, in the order of its train.py."""

    def __init__(self, own: argparse.Namespace, folder: Path, *, best: bool) -> None:
        from timm.data import ImageDataset, create_loader
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import dispatch_clip_grad

        self.device, self.batch, self.notes = torch.device(own.device), own.batch, []
        dataset = ImageDataset(str(folder))
        self.model = vit(own, classes=2).to(self.device).train()
        self.loader = create_loader(
            dataset,
            (3, own.side, own.side),
            own.batch,
            is_training=True,
            scale=(0.08, 1.0),
            hflip=0.5,
            color_jitter=0.0,
            interpolation="bicubic",
            mean=MEAN,
            std=STD,
            num_workers=own.workers,
            persistent_workers=own.workers > 0,
            pin_memory=best and self.device.type == "cuda",
            device=self.device,
        )
        fused = {"fused": True} if best else {}
        self.optimizer = create_optimizer_v2(self.model, opt="adamw", lr=LR, weight_decay=DECAY, **fused)
        steps = max(1, len(dataset) // own.batch)
        settings = {"num_epochs": 300, "step_on_epochs": False, "updates_per_epoch": steps}
        self.schedule, _ = create_scheduler_v2(self.optimizer, sched="cosine", **settings)
        self.clip = partial(dispatch_clip_grad, value=1.0, mode="norm")
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=own.precision == "bf16")
        self.task = self._task(compiled=best and own.compile)
        self.updates, self.batches = 0, self._endless()

    def _task(self, *, compiled: bool) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
        try:
            from timm.task import ClassificationTask
        except ImportError:  # an older timm: its script calls model and loss itself
            from timm.loss import LabelSmoothingCrossEntropy

            loss = LabelSmoothingCrossEntropy(SMOOTHING)
            model = torch.compile(self.model, backend="inductor") if compiled else self.model
            return lambda images, targets: {"loss": loss(model(images), targets)}
        try:
            task = ClassificationTask(self.model, criterion_kwargs={"smoothing": SMOOTHING}, device=self.device)
        except TypeError:
            from timm.loss import LabelSmoothingCrossEntropy

            task = ClassificationTask(self.model, LabelSmoothingCrossEntropy(SMOOTHING), device=self.device)
        if compiled:
            task.compile(backend="inductor")
        return task  # type: ignore[no-any-return]

    def _endless(self) -> Iterator[Fixed]:
        while True:
            yield from self.loader

    def files(self, updates: int) -> int:
        return self._train(self.batches, updates)

    def resident(self, updates: int, fixed: Fixed) -> int:
        return self._train(iter(lambda: fixed, None), updates)

    def _train(self, batches: Iterator[Fixed], updates: int) -> int:
        with fast_float32():
            for _ in range(updates):
                images, targets = next(batches)
                with self.autocast():
                    loss = self.task(images, targets)["loss"]
                loss.backward()
                self.clip(self.model.parameters())
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.updates += 1
                self.schedule.step_update(num_updates=self.updates)
                if self.updates % LOG_EVERY == 0:
                    loss.item()
            synchronize(self.device)
        return updates * self.batch

    def close(self) -> None:
        self.batches.close()  # type: ignore[attr-defined]
        del self.loader


class Accelerated:
    """The loop of Accelerate's documentation (examples/cv_example.py), with the model and the crops of the others."""

    def __init__(self, own: argparse.Namespace, folder: Path) -> None:
        from accelerate import Accelerator
        from torch.utils.data import DataLoader
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        bicubic = transforms.InterpolationMode.BICUBIC
        crop = transforms.RandomResizedCrop(own.side, scale=(0.08, 1.0), interpolation=bicubic)
        steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        dataset = ImageFolder(str(folder), transforms.Compose(steps))
        mixed = "bf16" if own.precision == "bf16" else "no"
        self.accelerator = Accelerator(cpu=own.device == "cpu", mixed_precision=mixed)
        loader = DataLoader(dataset, shuffle=True, batch_size=own.batch, num_workers=own.workers, drop_last=True)
        model = vit(own, classes=2).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300 * len(loader))
        prepared = self.accelerator.prepare(model, optimizer, loader, schedule)
        self.model, self.optimizer, self.loader, self.schedule = prepared
        self.mean, self.std = (
            torch.tensor(each, device=self.accelerator.device)[:, None, None] for each in (MEAN, STD)
        )
        self.batch, self.updates, self.notes, self.batches = own.batch, 0, [], self._endless()

    def _endless(self) -> Iterator[Fixed]:
        while True:
            for images, targets in self.loader:
                yield (images - self.mean) / self.std, targets

    def files(self, updates: int) -> int:
        return self._train(self.batches, updates)

    def resident(self, updates: int, fixed: Fixed) -> int:
        return self._train(iter(lambda: fixed, None), updates)

    def _train(self, batches: Iterator[Fixed], updates: int) -> int:
        for _ in range(updates):
            images, targets = next(batches)
            loss = nn.functional.cross_entropy(self.model(images), targets, label_smoothing=SMOOTHING)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.updates += 1
            if self.updates % LOG_EVERY == 0:
                loss.item()
        synchronize(self.accelerator.device)
        return updates * self.batch

    def close(self) -> None:
        self.batches.close()  # type: ignore[attr-defined]
        del self.loader


def vit(own: argparse.Namespace, classes: int) -> nn.Module:
    """Return timm's model."""
    import timm

    name = f"vit_{'tiny' if own.small else 'small'}_patch16_224"
    return timm.create_model(name, num_classes=classes, img_size=own.side)  # type: ignore[no-any-return]


@contextlib.contextmanager
def fast_float32() -> Iterator[None]:
    """Set what timm's script sets: TF32, and cuDNN's choice by trial."""
    flags = (torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "benchmark")
    before = [getattr(module, name) for module, name in flags]
    for module, name in flags:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(flags, before, strict=True):
            setattr(module, name, value)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
