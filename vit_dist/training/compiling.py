"""Compile the model of a run, if its config asks for it and the compiled model gives the numbers of the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.errors import UserError, one_line
from vit_dist.models.build import drop_path_depth
from vit_dist.models.compile import blocks_of, compile_blocks, run_eagerly
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import Components

# How far loss and gradient norm may be apart, relative, by precision: sums are rounded in another order, and in 16 bits
# what is kept in between is rounded in other places.
BOUNDS = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}

# FLOPs of one process in a whole run from which on `auto` compiles: a minute or so of an H100.
LEAST_FLOPS = 1e16


def compile_model(components: Components, runtime: Runtime) -> list[str]:
    """Compile the bare model in place if `train.compile` says so, or a long run gains from it, and return notes.

    One micro-batch of noise goes through the model before and after. If loss or gradient norm are apart, or the
    compiler fails, the model stays as it is, on all ranks, and a note says why. Raises UserError for a model without
    blocks that are alike.
    """
    model, config = components.model, components.config
    wanted = config.train.compile
    if wanted == "none" or (wanted == "auto" and not _pays(components, runtime)):
        return []
    try:
        blocks_of(model)
    except UserError:
        if wanted == "blocks":
            raise
        return []
    before = _probe(components, runtime)
    problem = ""
    with runtime.working():  # minutes, for a large model
        try:
            compile_blocks(model, deterministic=config.run.deterministic)
            problem = difference(before, _probe(components, runtime), runtime.precision)
        except Exception as error:  # of any kind: a compiler's
            problem = f"the compiler failed: {type(error).__name__}: {one_line(error, 200)}"
    problems = [text for text in runtime.gather(problem) if text]
    if not problems:
        return []
    run_eagerly(model)
    return [f"train.compile: {problems[0]}: the model is not compiled"]


def _pays(components: Components, runtime: Runtime) -> bool:
    """Return whether compiling, some ten seconds, takes less time than it saves: on a GPU a fifth to a third."""
    plan = components.plan
    images = plan.updates * plan.global_size / runtime.world_size
    return runtime.device.type == "cuda" and 3 * components.forward_flops * images >= LEAST_FLOPS


def difference(before: tuple[float, float], after: tuple[float, float], precision: str) -> str:
    """Return in words how (loss, gradient norm) differ, or nothing if they are within the precision's bound."""
    for name, first, second in zip(("loss", "gradient norm"), before, after, strict=True):
        if not abs(first - second) <= BOUNDS[precision] * abs(first):
            return f"the {name} of one micro-batch is {second:.6g} compiled and {first:.6g} not"
    return ""


def _probe(components: Components, runtime: Runtime) -> tuple[float, float]:
    """Return the loss and the gradient norm of one micro-batch of noise; gradients are left as they were."""
    model, side = components.model, components.preprocessing.image_size
    slots = components.config.batch.micro_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(slots, components.data.channels, side, side, generator=generator)
    targets = torch.arange(slots) % len(components.data.classes)
    inputs: list[Tensor] = [images]
    if depth := drop_path_depth(model):
        inputs.append(torch.rand(slots, depth, 2, generator=generator))
    kept = [parameter.grad for parameter in model.parameters()]
    model.train()
    model.zero_grad()
    runtime.seed(0)
    with runtime.autocast():
        outputs = model(*map(runtime.to_device, inputs))
    loss = F.cross_entropy(outputs.float(), runtime.to_device(targets))
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        parameter.grad = grad
    return loss.item(), norm.item()
