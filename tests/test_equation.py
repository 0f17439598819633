"""What Rankwise computes runs through `rankwise.lora.maths`."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise
from rankwise import LoRAConfig, Training, inject, merge
from rankwise.cli import main
from rankwise.lora import maths
from small_sweep import accuracy, loss, small_model, some_data
from test_cli import QUICK, folder_of_digits

LORA = Path(maths.__file__).parent


class ReachedError(Exception):
    """An equation was called."""


def forward(folder: Path) -> None:
    model = small_model()
    inject(model, LoRAConfig(r=1))
    model(torch.ones(2, 6))


def merged(folder: Path) -> None:
    model = small_model()
    inject(model, LoRAConfig(r=1))
    merge(model)


def swept(folder: Path) -> None:
    data = [some_data(16, seed) for seed in range(3)]
    given = dict(zip(("train", "validation", "test"), data, strict=True))
    quick = Training(batch_size=8, epochs=1)
    rankwise.sweep(
        small_model(), [1], **given, loss=loss, metric=accuracy, training=quick, lrs=0.01, plan="grid", progress="quiet"
    )


def digits(folder: Path) -> None:
    data = folder_of_digits(folder / "data")
    main(["digits", *QUICK, "--data", str(data), "--out", str(folder / "out"), "--quiet"])


ALL = ("lora_update", "lora_delta", "lora_model", "lora_pack")


@pytest.mark.parametrize(
    ("equations", "operation"),
    [
        *((ALL, operation) for operation in (forward, merged, swept, digits)),
        (("lora_update",), forward),
        *((("lora_delta",), operation) for operation in (merged, swept, digits)),
        (("lora_model",), swept),
    ],
    ids=lambda value: value.__name__ if callable(value) else "+".join(value),
)
def test_nothing_is_computed_without_the_equation(
    equations: tuple[str, ...], operation: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*args: Any, **kwargs: Any) -> Any:
        raise ReachedError

    for name in equations:
        monkeypatch.setattr(maths, name, reached)
    with pytest.raises(ReachedError):
        operation(tmp_path)


PRODUCTS = {"matmul", "linear", "bmm", "mm", "addmm", "baddbmm", "einsum", "tensordot"}


@pytest.mark.parametrize(
    "path",
    [LORA / "adapter.py", *LORA.glob("layer/*.py"), *LORA.glob("layer_types/*.py"), *LORA.glob("variants/*.py")],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_only_maths_multiplies(path: Path) -> None:
    def multiplies(node: ast.AST) -> bool:
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            return True
        function = node.func if isinstance(node, ast.Call) else None
        return getattr(function, "attr", getattr(function, "id", None)) in PRODUCTS

    assert [node.lineno for node in ast.walk(ast.parse(path.read_text())) if multiplies(node)] == []


def test_the_weight_of_the_definition_is_frozen() -> None:
    layer = nn.Linear(3, 2)
    delta = torch.zeros(2, 3, requires_grad=True)
    maths.lora_model(layer, {"weight": delta}, (torch.ones(1, 3),)).sum().backward()
    assert layer.weight.grad is None
    assert delta.grad is not None
