"""The first gradient of a process group is summed in the order of all that follow, on real processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.processes import run_world
from vit_dist.config.fields import RunConfig
from vit_dist.runtime.runtime import Runtime


class Crossed(nn.Module):
    """Its parameters are registered in another order than the gradients arrive in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.first, self.middle = nn.Linear(9, 3), nn.Linear(7, 50), nn.Linear(50, 9)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.middle(self.first(inputs).tanh()).tanh())
        return outputs


def gradients() -> list[bool]:
    """Return whether the gradient is none before the first update, and equal in the first, second and third."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    bare = Crossed()
    model = runtime.prepare(bare)
    inputs = torch.randn(8, 7, generator=torch.Generator().manual_seed(runtime.rank))
    none = all(parameter.grad is None for parameter in bare.parameters())
    updates = []
    for _ in range(3):
        with runtime.gradient_sync(model, last=True):
            runtime.backward(model(inputs).square().sum())
        updates.append([parameter.grad.clone() for parameter in bare.parameters() if parameter.grad is not None])
        bare.zero_grad()
    equal = [all(map(torch.equal, updates[0], update)) for update in updates[1:]]
    runtime.end()
    return [none, len(updates[0]) == 6, *equal]


def test_three_processes_sum_the_first_gradient_in_the_order_of_the_second(tmp_path: Path) -> None:
    assert run_world(3, gradients, tmp_path) == [[True] * 4] * 3
