"""Which way a layer runs in a pack."""

from typing import Any

from torch import nn

from rankwise.lora.layer_types import layer_type_of
from rankwise.pack.forwards import Forward
from rankwise.pack.general import GeneralLayer
from rankwise.pack.layer import LinearLayer
from rankwise.pack.store import Store

PackedLayer = LinearLayer | GeneralLayer


def packed_layer(name: str, module: nn.Module, store: Store, forward: Forward) -> PackedLayer:
    """The layer as it runs in a pack: in batched products of its own where it only multiplies by its weight.

    Args:
        name: Its path.
        module: The base's layer.
        store: The pack's numbers.
        forward: The layer's own forward.
    """
    row = layer_type_of(module)
    calls: Any = type(module).forward
    adapting = [bucket for bucket in store.buckets if bucket.adapts(name)]
    varied = any(bucket.variant(name).tensors or bucket.row(name).partial for bucket in adapting)
    plain = row is not None and row.linear and row.quantised is None and not varied
    # An older weight norm computes the weight from parameters of other names.
    ordinary = {key for key, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}
    if row is not None and plain and ordinary and (calls is nn.Linear.forward or row.transposed):
        return LinearLayer(name, module, row, store)
    return GeneralLayer(name, module, row, store, forward)


def is_one_layer(module: nn.Module) -> bool:
    """Whether a module has no others inside, apart from what computes its own weight.

    Examples:
        >>> is_one_layer(nn.Linear(2, 2)), is_one_layer(nn.Sequential(nn.Linear(2, 2)))
        (True, False)
        >>> is_one_layer(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        True
    """
    return all(name == "parametrizations" for name, _ in module.named_children())
