"""Parameters that an adapter trains whole: a new head, norms, biases. Each adapter has its own, the base keeps its own.

For the length of a layer's forward its parameters are shadowed by the active adapter's: an instance attribute is
found before a registered parameter. So class, keys and the base's numbers stay as they are, and switching sets a flag.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError, TargetError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.modules import Adapter, named_once, submodule
from rankwise.lora.patterns import Patterns, as_list
from rankwise.lora.readers import Reader
from rankwise.lora.targets import Target

WHOLE_CHILD = "lora_whole"
"""How the name of the submodule begins that holds the adapters' own parameters of a layer."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that run over their children, or whose parameters are read without a forward: nothing can be added."""


class Own(Adapter):
    """What one adapter has in place of a layer's own parameters and buffers, under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_keep_own)

    def tensors(self) -> dict[str, Any]:
        """Return them by name."""
        return {**self._parameters, **self._buffers}


def _keep_own(own: Own, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Keep what a checkpoint of the base alone says nothing of: it loads strictly."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in own.tensors().items()}
    if not any(key in state_dict for key in tensors):
        state_dict.update(tensors)


class Whole(Adapter):
    """The adapters' own parameters of one layer, and the hooks that put the active one's in place.

    Args:
        layer: The layer. It is not kept.
        inside: Where the parameters' owner lies in the layer; empty where it is the layer itself.
    """

    active: str = ""
    disabled: bool = False
    merged: str = ""

    def __init__(self, layer: nn.Module, inside: str = "") -> None:
        super().__init__()
        self.inside = self.below = inside
        """Where the owner lies in the module that keeps this, and in the one whose forward reads the parameters."""
        self.own = nn.ModuleDict()
        self.before: dict[str, Tensor | None] = {}
        """What the base had before merging; None where it was freed."""
        self.handles: list[RemovableHandle] = []
        self.hook_on(Reader(layer, inside))
        if not layer.training:
            self.eval()

    def hook_on(self, reader: Reader) -> None:
        """Put the parameters in place for the forwards of this module. Earlier hooks go."""
        for handle in self.handles:
            handle.remove()
        self.below = reader.below
        self.handles = [
            # First, so that A and B that act through the weight find it in its place.
            reader.module.register_forward_pre_hook(self.put, prepend=True),
            reader.module.register_forward_hook(self.take, always_call=True),
        ]

    def owner(self, layer: nn.Module) -> nn.Module:
        """Return the module whose parameters these are."""
        return submodule(layer, self.inside)

    def tensors(self, name: str) -> dict[str, Any]:
        """Return an adapter's parameters and buffers; looked up at each call, as others may replace them."""
        own = self.own._modules.get(name)  # pyright: ignore[reportPrivateUsage]  (looked up twice otherwise)
        return own.tensors() if isinstance(own, Own) else {}

    def put(self, reader: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the forward: let the active adapter's parameters be found first."""
        if self.active and not self.disabled and not self.merged:
            submodule(reader, self.below).__dict__.update(self.tensors(self.active))

    def take(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the forward, also after one that failed: let the base's be found again."""
        shadowed = submodule(reader, self.below).__dict__
        for name in self.tensors(self.active):
            shadowed.pop(name, None)

    def extra_repr(self) -> str:
        """Name the adapters and the active one."""
        return f"adapters={list(self.own)}, active={self.active!r}"


def wholes(model: nn.Module) -> dict[str, tuple[nn.Module, Whole]]:
    """Return the layers with parameters of adapters' own, by the path of these parameters' owner."""
    return {
        _joined(names[0], child.inside): (layer, child)
        for layer, names in named_once(model)
        for child in layer._modules.values()  # pyright: ignore[reportPrivateUsage]  (children() makes each a set)
        if isinstance(child, Whole)
    }


def whole_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return what an adapter has whole: path of the base's parameter or buffer -> the adapter's."""
    return {
        _joined(path, leaf): tensor
        for path, (_, whole) in wholes(model).items()
        for leaf, tensor in whole.tensors(name).items()
    }


def whole_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """Return what of it is trained."""
    tensors = whole_tensors(model, name).values()
    return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter) and tensor.requires_grad]


# Which


def saved_modules(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Return the paths of the modules that are trained whole, without those inside another of them.

    Raises:
        TargetError: A pattern matches nothing.
    """
    patterns = Patterns(as_list(config.modules_to_save))
    found: list[str] = []
    for module, names in named_once(model):
        if matching := patterns.matching(names, module):
            patterns.mark(matching)
            if not is_inside(names[0], found):
                found.append(names[0])
    if patterns.unused():
        raise TargetError(f'No module matches modules_to_save "{patterns.unused()[0]}".')
    return found


def is_inside(name: str, outer: Iterable[str]) -> bool:
    """Tell whether a path is one of these, or lies below one.

    Examples:
        >>> is_inside("head.fc", ["head"]), is_inside("header", ["head"])
        (True, False)
    """
    return any(name == path or not path or name.startswith(f"{path}.") for path in outer)


def initial_whole(model: nn.Module, config: LoRAConfig, adapted: Iterable[Target]) -> dict[str, Tensor]:
    """Return copies of what a fresh adapter trains whole: parameters and buffers by path.

    Args:
        model: The base.
        config: Whose `modules_to_save` are paths, as `saved_modules` gives them.
        adapted: The modules that get A and B.
    """
    saved = [str(path) for path in as_list(config.modules_to_save)]
    targets = {target.name for target in adapted}
    chosen: dict[str, Tensor] = {}
    for module, names in named_once(model):
        for leaf, tensor in {**module._parameters, **module._buffers}.items():  # pyright: ignore[reportPrivateUsage]
            is_bias = leaf == "bias" and (config.bias == "all" or (config.bias == "lora_only" and names[0] in targets))
            if tensor is not None and (is_bias or (saved and is_inside(names[0], saved))):
                chosen[_joined(names[0], leaf)] = tensor.detach().clone()
    return chosen


# Attach, switch, take off


def check_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless each of these can be put in place of a parameter or buffer of the model.

    Raises:
        AdapterError: One can't, with the reason.
    """
    for path in tensors:
        owner, host, _ = _places(model, path)
        row = layer_type_of(owner)
        if row is not None and row.quantised is not None and path.endswith("weight"):
            raise AdapterError(f'"{path}" is quantised and can\'t be trained whole; leave it out of modules_to_save.')
        if isinstance(host, (*_CONTAINERS, nn.RNNBase)) or path.rpartition(".")[2] in owner.__dict__:
            raise AdapterError(
                f'"{path}" can\'t be trained whole: a {type(host).__name__} reads it in a way of its own. '
                "Leave it out of modules_to_save and bias."
            )


def attach_whole(model: nn.Module, name: str, tensors: Mapping[str, Tensor], config: LoRAConfig) -> None:
    """Give an adapter parameters of its own, in the type and on the device of the base's.

    Args:
        model: The base.
        name: The adapter.
        tensors: Path of a parameter or buffer -> values, which `check_whole` has let pass.
        config: Whose `modules_to_save` are paths. What it doesn't announce is not trained: embeddings of an enlarged
            vocabulary.
    """
    saved = [str(path) for path in as_list(config.modules_to_save)]
    for path, tensor in tensors.items():
        owner, host, inside = _places(model, path)
        whole = host._modules.get(_child_name(inside))  # pyright: ignore[reportPrivateUsage]
        if not isinstance(whole, Whole):
            whole = Whole(host, inside)
            host.add_module(_child_name(inside), whole)
        if name not in whole.own:
            whole.own[name] = Own()
        leaf = path.rpartition(".")[2]
        trained = is_inside(path, saved) or (leaf == "bias" and config.bias != "none")
        base: Tensor = getattr(owner, leaf)
        values = tensor.detach().to(base.device, base.dtype, copy=True)
        if leaf in owner._buffers:  # pyright: ignore[reportPrivateUsage]
            whole.own[name].register_buffer(leaf, values)
        else:
            whole.own[name].register_parameter(leaf, nn.Parameter(values, base.is_floating_point() and trained))


def _child_name(inside: str) -> str:
    return f"{WHOLE_CHILD}_{inside}" if inside else WHOLE_CHILD


def _places(model: nn.Module, path: str) -> tuple[nn.Module, nn.Module, str]:
    """Return a parameter's owner; the module whose forward reads it; and the owner's path in that."""
    owner_path = path.rpartition(".")[0]
    owner = submodule(model, owner_path)
    if type(owner).__name__ != "NonDynamicallyQuantizableLinear":
        return owner, owner, ""
    # An attention reads the weights of its output layer and never calls it.
    above, _, inside = owner_path.rpartition(".")
    return owner, submodule(model, above), inside


def whole_readers(model: nn.Module, paths: Iterable[str]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return the owners of parameters that are trained whole, and the modules whose forwards are to read them.

    Those that several modules share are left out: each has its own in the place of its own.
    """
    times = Counter(id(p) for module in model.modules() for p in module._parameters.values())  # pyright: ignore[reportPrivateUsage]
    found: dict[str, tuple[nn.Module, nn.Module]] = {}
    for path in paths:
        owner, host, _ = _places(model, path)
        if times[id(owner._parameters.get(path.rpartition(".")[2]))] == 1:  # pyright: ignore[reportPrivateUsage]
            found[path] = owner, host
    return found


def check_one_whole(model: nn.Module, names: Iterable[str]) -> None:
    """Raise where two of these adapters have the same parameter whole: their sum would mean nothing.

    Raises:
        AdapterError: As said.
    """
    names = [*dict.fromkeys(names)]
    for path, (_, whole) in wholes(model).items():
        both = [name for name in names if name in whole.own]
        if len(both) > 1:
            raise AdapterError(
                f'Adapters "{both[0]}" and "{both[1]}" both have parameters of "{path}" whole; only one can be active.'
            )


def activate_whole(model: nn.Module, names: Iterable[str]) -> None:
    """Put the parameters of these adapters in place; `check_one_whole` has let them pass."""
    names = [*names]
    for _, whole in wholes(model).values():
        whole.active = next((name for name in names if name in whole.own), "")


def remove_whole(model: nn.Module, name: str | None) -> None:
    """Forget an adapter's parameters, or all (then a merged layer gets its own back, unless they were freed)."""
    for layer, whole in wholes(model).values():
        if name is None:
            _restore(layer, whole)
            whole.own.clear()
        elif name in whole.own:
            del whole.own[name]
            whole.active = "" if whole.active == name else whole.active
        if not len(whole.own):
            for handle in whole.handles:
                handle.remove()
            delattr(layer, _child_name(whole.inside))


def check_mergeable_whole(model: nn.Module) -> None:
    """Raise where layers share a parameter, and the active adapters don't have the same in its place everywhere.

    Raises:
        AdapterError: As said.
    """
    active: dict[str, Tensor] = {}
    for path, (_, whole) in wholes(model).items():
        active |= {_joined(path, leaf): tensor for leaf, tensor in whole.tensors(whole.active).items()}
    names: dict[int, list[str]] = {}
    for module, paths in named_once(model) if active else ():
        for leaf, parameter in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            names.setdefault(id(parameter), []).append(_joined(paths[0], leaf))
    names.pop(id(None), None)
    for shared in names.values():
        mine = [active[name] for name in shared if name in active]
        if mine and not (len(mine) == len(shared) and all(torch.equal(mine[0], other) for other in mine)):
            raise AdapterError(
                f'"{shared[0]}" and "{shared[1]}" are one parameter, and the adapter has not the same in the place of '
                "both, so it can't be merged. Give each a parameter of its own first (for a model of transformers: "
                "tie_word_embeddings=False)."
            )


def merge_whole(model: nn.Module, keep_base: bool) -> None:
    """Write the active adapters' parameters over the base's; `check_mergeable_whole` has let them pass."""
    before: dict[int, Tensor] = {}
    with torch.no_grad():
        for layer, whole in wholes(model).values():
            owner = whole.owner(layer)
            for leaf, tensor in whole.tensors(whole.active).items():
                base: Tensor = getattr(owner, leaf)
                if keep_base and id(base) not in before:
                    before[id(base)] = base.detach().to("cpu", copy=True)
                whole.before[leaf] = before.get(id(base))
                base.copy_(tensor)
            whole.merged = whole.active


def unmerge_whole(model: nn.Module) -> None:
    """Give the base's parameters back."""
    for layer, whole in wholes(model).values():
        _restore(layer, whole)


def _restore(layer: nn.Module, whole: Whole) -> None:
    owner = whole.owner(layer)
    with torch.no_grad():
        for leaf, before in whole.before.items():
            if before is not None:
                getattr(owner, leaf).copy_(before)
    whole.before, whole.merged = {}, ""


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
