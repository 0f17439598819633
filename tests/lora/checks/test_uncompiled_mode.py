"""A mode that sees operations: torch.compile leaves its own code alone."""

import pytest
import torch
from torch import nn

from rankwise.train.machine.memory import peak_bytes

pytestmark = pytest.mark.usefixtures("compilable")


@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_compiled_model_inside_it_is_compiled_no_further(compiled_before: bool) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(3, 4)
    compiled = torch.compile(model, backend=backend)
    if compiled_before:
        compiled(x)
    before = len(graphs)
    eager, seen = (peak_bytes(lambda run=run: run(x), torch.device("cpu")) for run in (model, compiled))
    assert seen == eager > 0
    assert len(graphs) == before == compiled_before
