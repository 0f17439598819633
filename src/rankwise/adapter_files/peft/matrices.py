"""A file's A and B as stacks of matrices, without the layer they belong to, and back."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from rankwise.adapter_files.peft.layer_tensors import form_of
from rankwise.errors import AdapterFileError
from rankwise.lora.layer_types import layer_type_of

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
"""Dimensions of A -> the class of its layer."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MatrixPair:
    """A and B of one weight: n matrices B A of one shape (n experts, n groups of a convolution; else n = 1).

    Args:
        A: Down-projections.
        B: Up-projections.
        growth: Rank in the file for each rank here: a grouped convolution's A is written once for each group.
        filed: A and B of any rank, in this form -> as the file has them.
    """

    A: Float[Tensor, "n r d_in"]
    B: Float[Tensor, "n d_out r"]
    growth: int
    filed: Callable[[Tensor, Tensor], Pair]


def as_matrices(A: Tensor, B: Tensor, stack: int = 1) -> MatrixPair:
    """Return a file's A and B as matrices whose products are the update, up to its scale.

    Args:
        A: As the file has it: (stack r, d_in), or a convolution's (r, in, *kernel).
        B: (d_out, r stack), or a convolution's (out, r / groups, 1, ...).
        stack: Of how many matrices the weight consists (experts).

    Raises:
        AdapterFileError: They are of no layer's shape.

    Examples:
        >>> import torch
        >>> pair = as_matrices(torch.ones(4, 3), torch.ones(5, 4), stack=2)
        >>> pair.A.shape, pair.B.shape
        (torch.Size([2, 2, 3]), torch.Size([2, 5, 2]))
    """
    if A.ndim == 2:
        # PEFT has A expert by expert, and B with the first column of every expert, then the second.
        return MatrixPair(
            A.unflatten(0, (stack, -1)),
            B.unflatten(1, (-1, stack)).permute(2, 0, 1),
            1,
            lambda A, B: (A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)),
        )
    return _of_convolution(A, B)


def _of_convolution(A: Tensor, B: Tensor) -> MatrixPair:
    r, channels, *kernel = A.shape
    groups, d_out, ones = r // B.shape[1], B.shape[0], [1] * len(kernel)
    if d_out % groups or channels % groups or A.ndim not in _CONVOLUTIONS:
        raise AdapterFileError(
            f"A has shape {tuple(A.shape)} and B {tuple(B.shape)}; no convolution has such. Is the file damaged?"
        )
    layer = _CONVOLUTIONS[A.ndim](channels, d_out, tuple(kernel), groups=groups, device="meta")
    kind = layer_type_of(layer)
    if kind is not None:
        form = form_of(kind)
        down, up = form.read(kind, layer, A, B)
        if down.shape[0] * groups == r:  # all groups share their A: one matrix of a grouped weight's shape
            return MatrixPair(
                down[None], up[None], groups, lambda A, B: form.write(kind, layer, A.flatten(0, 1), B.flatten(0, 1))
            )
    return MatrixPair(
        A.flatten(1).unflatten(0, (groups, -1)),
        B.flatten(1).unflatten(0, (groups, -1)),
        groups,
        lambda A, B: (A.reshape(-1, channels, *kernel), B.reshape(d_out, -1, *ones)),
    )
