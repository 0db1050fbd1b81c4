"""Compile a model's blocks in place: one graph for all of them, and the same names of parameters."""

from __future__ import annotations

from torch import nn

from vit_dist.errors import UserError
from vit_dist.models.keyed_drop_path import KeyedDropPath
from vit_dist.sizing.towers import towers_of


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return a model's blocks, of both towers if it has two. Raises UserError if it has none that are alike."""
    if towers := towers_of(model):
        return [block for tower in towers.values() for block in blocks_of(tower)]
    blocks = getattr(model, "blocks", None)
    found = list(blocks) if isinstance(blocks, (nn.ModuleList, nn.Sequential)) else []
    if not found or len({type(block) for block in found}) > 1:
        raise UserError(
            "train.compile: blocks needs a model whose .blocks are all of one kind, as a ViT's: set train.compile none"
        )
    modules = [module for block in found for module in block.modules()]
    if any(getattr(module, "drop_prob", 0) and not isinstance(module, KeyedDropPath) for module in modules):
        raise UserError(
            "train.compile: this model's drop path has a rate of its own in each block, and a graph for each: set "
            "model.drop_path 0 or train.compile none"
        )
    return found


def compile_blocks(model: nn.Module, *, deterministic: bool = False) -> None:
    """Compile a model's blocks, when each is first called. Raises UserError if it has none that are alike.

    deterministic: choose no kernel by timing it, since the choice, and so the rounding, may differ the next time.
    """
    # With torch's own random numbers, dropout is what it is without compiling.
    options = {"fallback_random": True, **({"deterministic": True} if deterministic else {})}
    for block in blocks_of(model):
        block.compile(dynamic=False, options=options)


def run_eagerly(model: nn.Module) -> None:
    """Let a model's modules run as they are written again."""
    for module in model.modules():
        module._compiled_call_impl = None


def is_compiled(model: nn.Module) -> bool:
    """Return whether parts of a model are compiled, or will be when they are first called."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def graphs() -> int:
    """Return how many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters  # a second to import, which only those who compile wait for

    return int(counters["stats"]["unique_graphs"])
