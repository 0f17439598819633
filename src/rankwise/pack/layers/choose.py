"""Choose how a layer runs in a pack."""

from typing import Any

from torch import Tensor, nn

from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.variants import LORA
from rankwise.pack.groups import Groups
from rankwise.pack.layers.any_layer import GeneralLayer
from rankwise.pack.layers.half import Halves
from rankwise.pack.layers.linear_layer import LinearLayer
from rankwise.pack.noise.forwards import Forward
from rankwise.pack.noise.keyed import Noise
from rankwise.pack.precision import rounds
from rankwise.pack.stacks.store import Store

PackedLayer = LinearLayer | GeneralLayer


def packed_layer(
    name: str, module: nn.Module, store: Store, forward: Forward, halves: Halves | None = None
) -> PackedLayer:
    """The layer as it runs in a pack: in batched products of its own where it only multiplies by its weight.

    Args:
        name: Its path.
        module: The base's layer.
        store: The pack's numbers.
        forward: The layer's own forward.
        halves: Where products run in bfloat16, the numbers they share; else None.
    """
    kind = layer_type_of(module)
    calls: Any = type(module).forward
    adapting = [bucket for bucket in store.buckets if bucket.adapts(name)]
    varied = any(not bucket.variant(name).low_rank or bucket.kind(name).partial for bucket in adapting)
    # What is frozen lies in the type of what is trained alone.
    exact = halves is None and getattr(module, "weight", store.theta).dtype == store.theta.dtype
    varied = varied or not (exact or all(bucket.variant(name) is LORA for bucket in adapting))
    plain = kind is not None and kind.linear and kind.quantised is None and not varied
    # An older weight norm computes the weight from parameters of other names.
    ordinary = {key for key, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}
    if kind is not None and plain and ordinary and (calls is nn.Linear.forward or kind.transposed):
        return LinearLayer(name, module, kind, store, halves if rounds(module) else None)
    return GeneralLayer(name, module, kind, store, forward)


def called_without_rows(
    layer: PackedLayer, x: Tensor, groups: Groups, rows: int, noise: Noise | None, *rest: Any, **named: Any
) -> Tensor:
    """A layer's output for all adapters where its input is the same for every row of the batch.

    Each adapter's output is computed once, and repeated for its rows.

    Args:
        layer: The layer.
        x: (1, ...), or without a dimension of rows.
        groups: Which batch each adapter reads.
        rows: How many rows each adapter has.
        noise: Where the adapters' own dropout takes its masks from; None in eval mode.
        rest, named: The call's other arguments.

    Returns:
        (K * rows, ...).
    """
    k = len(groups.batch_of)
    own = x.expand(k, *x.shape[1:]) if x.shape[0] == 1 else x.expand(k, *x.shape)
    y = layer(own, groups, False, noise, *rest, **named)
    return y.unsqueeze(1).expand(k, rows, *y.shape[1:]).flatten(0, 1)


def is_one_layer(module: nn.Module) -> bool:
    """Whether a module has no others inside, apart from what computes its own weight.

    Examples:
        >>> is_one_layer(nn.Linear(2, 2)), is_one_layer(nn.Sequential(nn.Linear(2, 2)))
        (True, False)
        >>> is_one_layer(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        True
    """
    return all(name == "parametrizations" for name, _ in module.named_children())
