"""Compile the model of a run, if its config asks for it and the compiled model gives the numbers of the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.data.batch import Batch
from vit_dist.errors import UserError, one_line
from vit_dist.models.compile import blocks_of, compile_blocks, run_eagerly
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import Components
from vit_dist.training.cuda_graph import GraphedPass
from vit_dist.training.noise import noise_batch
from vit_dist.training.update import Updater

# How far loss and gradient norm may be apart, relative, by precision: sums are rounded in another order, and in 16 bits
# what is kept in between is rounded in other places.
BOUNDS = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}

# `auto`: FLOPs of one process in a whole run from which on it compiles, a minute or so of an H100: compiling takes some
# ten seconds and saves a fifth to a third. And those of a micro-batch, forward and backward, below which a GPU is done
# before the host has started all of its kernels: for twelve compiled blocks, 26 ms, in which an H100 computes 6e12.
LEAST_FLOPS, SMALL_FLOPS = 1e16, 5e12


def compile_modes(components: Components, runtime: Runtime) -> set[str]:
    """Return what `train.compile` comes to: blocks, graph, both or neither. Raises UserError where no graph can be."""
    config, plan = components.config, components.plan
    wanted, problem = config.train.compile, _graph_problem(components, runtime)
    if wanted == "graph" and problem:
        raise UserError(f"train.compile: graph {problem}: set auto or none")
    if wanted in ("none", "graph"):
        return set() if wanted == "none" else {"graph"}
    flops = 3 * components.forward_flops
    run = flops * plan.updates * plan.global_size / runtime.world_size
    modes: set[str] = set()
    if wanted == "blocks" or (runtime.device.type == "cuda" and run >= LEAST_FLOPS):
        modes.add("blocks")
    if not problem and flops * plan.micro_size < SMALL_FLOPS:
        modes.add("graph")
    return modes


def compile_model(components: Components, runtime: Runtime) -> list[str]:
    """Compile the bare model's blocks in place if `compile_modes` says so, and return notes.

    One micro-batch of noise goes through the model before and after. If loss or gradient norm are apart, or the
    compiler fails, the model stays as it is, on all ranks, and a note says why. Raises UserError for a model without
    blocks that are alike.
    """
    model, config = components.model, components.config
    if "blocks" not in compile_modes(components, runtime):
        return []
    try:
        blocks_of(model)
    except UserError:
        if config.train.compile == "blocks":
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


def graph_passes(updater: Updater, components: Components, runtime: Runtime) -> list[str]:
    """Let an updater replay its passes as a CUDA graph if `compile_modes` says so, and return notes.

    One micro-batch of noise makes a pass before and after; what differs, or fails, is as with `compile_model`.
    """
    if "graph" not in compile_modes(components, runtime):
        return []
    batch, zero = _noise(components, runtime), torch.zeros((), device=runtime.device)

    def measured(make: Callable[..., tuple[Tensor, ...]]) -> tuple[float, float]:
        runtime.seed(0)
        total = make(batch, zero, 1 / len(batch.weights), True)[1]
        norm = nn.utils.get_total_norm([p.grad for p in updater.parameters if p.grad is not None])
        updater.optimizer.zero_grad(set_to_none=False)
        return total.item(), norm.item()

    try:
        before = measured(updater.forward_backward)
        updater.graphed = GraphedPass(updater.forward_backward, updater.parameters)
        problem = difference(before, measured(updater.graphed), runtime.precision)
    except RuntimeError as error:
        problem = f"no graph can be recorded: {one_line(error, 200)}"
    if not problem:
        return []
    updater.graphed = None
    updater.optimizer.zero_grad()
    return [f"train.compile: {problem}: without a graph"]


def _graph_problem(components: Components, runtime: Runtime) -> str:
    """Return why passes cannot be replayed; nothing if they can."""
    config = components.config
    if runtime.device.type != "cuda":
        return "needs a CUDA GPU"
    if runtime.world_size > 1:
        return "is for one process"
    if runtime.precision == "fp16":
        return "is for fp32 and bf16"
    if config.model.checkpoint_blocks:
        return "does not go with model.checkpoint_blocks"
    if config.contrastive:
        return "is for classifiers"
    for field, name in (("loss.name", config.loss.name), ("model.name", config.model.name)):
        if ":" in name:
            return f"would not call {field} {name} again"
    return ""


def difference(before: tuple[float, float], after: tuple[float, float], precision: str) -> str:
    """Return in words how (loss, gradient norm) differ, or nothing if they are within the precision's bound."""
    for name, first, second in zip(("loss", "gradient norm"), before, after, strict=True):
        if not abs(first - second) <= BOUNDS[precision] * abs(first):
            return f"the {name} of one micro-batch is {second:.6g} compiled and {first:.6g} not"
    return ""


def _noise(components: Components, runtime: Runtime) -> Batch:
    """Return a micro-batch of noise of the run's shape."""
    slots, side = components.plan.micro_size, components.preprocessing.image_size
    return noise_batch(components, runtime, slots, side, distinct=slots)


def _probe(components: Components, runtime: Runtime) -> tuple[float, float]:
    """Return the loss and the gradient norm of one micro-batch of noise; gradients are left as they were."""
    model, batch = components.model, _noise(components, runtime)
    kept = [parameter.grad for parameter in model.parameters()]
    model.train()
    model.zero_grad()
    runtime.seed(0)
    with runtime.autocast():
        outputs, targets = model(*batch.inputs), batch.targets
    if batch.tokens is not None:
        outputs, targets = 10 * outputs[0] @ outputs[1].T, torch.arange(len(targets), device=targets.device)
    loss = F.cross_entropy(outputs.float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        parameter.grad = grad
    return loss.item(), norm.item()
