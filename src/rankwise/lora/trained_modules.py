"""Parameters that an adapter trains in full: a new head, norms, biases. Each adapter has its own copies.
The base's never change.

During a layer's forward the active adapter's parameters shadow the base's: Python finds an instance attribute before
a registered parameter. Class, keys and the base's values stay as they are, and switching adapters sets a flag.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError, TargetError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer.asking import stop_asking
from rankwise.lora.layer.checkpoint import FREED
from rankwise.lora.layer.recomputed import check_same, marked
from rankwise.lora.layer.replacement import Replacement
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.layer_types.quantised import in_eight_bits, is_opaque
from rankwise.lora.offloaded import data_of, register
from rankwise.lora.targets.find import Target
from rankwise.lora.targets.modules import Adapter, named_once, submodule
from rankwise.lora.targets.patterns import Patterns, pattern_list
from rankwise.lora.targets.readers import Reader

TRAINED_CHILD = "lora_trained"
"""Prefix of the name of the submodule with the adapters' own parameters of a layer."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules that run over their children, or whose parameters are read without a forward: nothing can be added."""


class TrainedModules(Adapter):
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
        """Paths of the owner: in the module with this submodule, and in the module whose forward reads it."""
        self.own = nn.ModuleDict()
        self.before: dict[str, Tensor | None] = {}
        """The base's values from before merging; None where they were freed."""
        self.parked: dict[str, tuple[str, ...]] = {}
        """Adapter that doesn't act -> its parameters that ask for a gradient when it does."""
        self.handles: list[RemovableHandle] = []
        self.loading: RemovableHandle = layer.register_load_state_dict_pre_hook(self.load_base)
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
        return own.tensors() if isinstance(own, Replacement) else {}

    def put(self, reader: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the forward: let the active adapter's parameters be found first."""
        acting = () if self.disabled or not self.active else (self.active,)
        if not torch.compiler.is_compiling():
            check_same(self, acting)
        if acting and not self.merged:
            tensors = {leaf: marked(tensor, acting) for leaf, tensor in self.tensors(self.active).items()}
            submodule(reader, self.below).__dict__.update(tensors)

    def take(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the forward, also after one that failed: let the base's be found again."""
        shadowed = submodule(reader, self.below).__dict__
        for name in self.tensors(self.active):
            shadowed.pop(name, None)

    def switch(self, name: str) -> None:
        """Activate this adapter; the others' parameters then require no gradient, since none would reach them."""
        self.active = name
        for other, own in self.own.items():
            if other == name:
                for leaf in self.parked.pop(other, ()):
                    own.get_parameter(leaf).requires_grad_(True)
                continue
            if other not in self.parked:
                self.parked[other] = tuple(
                    leaf for leaf, parameter in own.named_parameters() if parameter.requires_grad
                )
            for leaf in self.parked[other]:
                stop_asking(own.get_parameter(leaf))

    def trained(self, name: str) -> list[nn.Parameter]:
        """Return what of an adapter's is trained, also while it doesn't act."""
        own = self.own._modules.get(name)  # pyright: ignore[reportPrivateUsage]
        named = own.named_parameters() if own is not None else ()
        return [p for leaf, p in named if p.requires_grad or leaf in self.parked.get(name, ())]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As of any module; while merged with what the base had, as `rankwise.lora.layer.checkpoint` has it."""
        state: Any = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for leaf, before in self.before.items():
            state[f"{prefix}base.{leaf}"] = torch.empty(0, device="cpu") if before is None else before.detach().clone()
        return state

    def load_base(self, layer: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Before the layer loads a checkpoint: of one that was taken while merged it gets what the base had."""
        begin = f"{prefix}{_child_name(self.inside)}.base."
        for key in [key for key in state_dict if key.startswith(begin)]:
            base, path = state_dict.pop(key), joined(f"{prefix}{self.inside}".rstrip("."), key.removeprefix(begin))
            if base.numel():
                state_dict[path] = base
            else:
                rest[-1].append(FREED.format(path))

    def restore(self, layer: nn.Module) -> None:
        """Restore the base's parameters after merging, unless they were freed."""
        owner = self.owner(layer)
        with torch.no_grad():
            for leaf, before in self.before.items():
                if before is not None:
                    getattr(owner, leaf).copy_(before)
        self.before, self.merged = {}, ""

    def extra_repr(self) -> str:
        """Name the adapters and the active one."""
        return f"adapters={list(self.own)}, active={self.active!r}"


def trained_modules(model: nn.Module) -> dict[str, tuple[nn.Module, TrainedModules]]:
    """Return the layers with parameters of adapters' own, by the path of these parameters' owner."""
    return {
        joined(names[0], child.inside): (layer, child)
        for layer, names in named_once(model)
        for child in layer._modules.values()  # pyright: ignore[reportPrivateUsage]  (children() makes each a set)
        if isinstance(child, TrainedModules)
    }


def replacement_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return an adapter's fully trained tensors: path of the base's parameter or buffer -> the adapter's."""
    return {
        joined(path, leaf): tensor
        for path, (_, trained) in trained_modules(model).items()
        for leaf, tensor in trained.tensors(name).items()
    }


def replacement_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the trained ones of an adapter's replacements."""
    return [parameter for _, trained in trained_modules(model).values() for parameter in trained.trained(name)]


# Which


def saved_modules(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Return the paths of the modules that are trained in full, without those inside another of them.

    Raises:
        TargetError: A pattern matches nothing.
    """
    patterns = Patterns(pattern_list(config.modules_to_save))
    found: list[str] = []
    for module, names in named_once(model):
        if matching := patterns.matching(names, module):
            patterns.mark(matching)
            if not is_inside(names[0], found):
                found.append(names[0])
    # peft names heads that a model of the task may have.
    unused = [pattern for pattern in patterns.unused() if not getattr(pattern, "optional", False)]
    if unused:
        raise TargetError(f'No module matches modules_to_save "{unused[0]}".')
    return found


def enclosing_modules(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return the outermost modules that hold the parameters of these modules and nothing else.

    A head of several layers (RoBERTa's `classifier.dense`, `classifier.out_proj`) is one module to peft, which does not
    find the layers' names inside what it has wrapped.

    Args:
        model: The base.
        names: Modules with their own parameters.

    Examples:
        >>> head = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        >>> model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": head})
        >>> enclosing_modules(model, ["head.0", "head.2"]), enclosing_modules(model, ["head.2"])
        (('head',), ('head.2',))
    """
    names = [*names]
    found: list[str] = []
    for name in names:
        parts = name.split(".")
        above = (".".join(parts[:n]) for n in range(1, len(parts)))
        outer = next((path for path in above if _holds_only(model.get_submodule(path), path, names)), name)
        if outer not in found:
            found.append(outer)
    return tuple(found)


def _holds_only(module: nn.Module, path: str, names: Iterable[str]) -> bool:
    """Tell whether a module can be wrapped, and all its tensors are parameters of these modules."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or next(module.buffers(), None) is not None:
        return False
    return all(joined(path, inside).rpartition(".")[0] in names for inside, _ in module.named_parameters())


def is_inside(name: str, outer: Iterable[str]) -> bool:
    """Tell whether a path is one of these, or lies below one.

    Examples:
        >>> is_inside("head.fc", ["head"]), is_inside("header", ["head"])
        (True, False)
    """
    return any(name == path or not path or name.startswith(f"{path}.") for path in outer)


def initial_replacements(model: nn.Module, config: LoRAConfig, adapted: Iterable[Target]) -> dict[str, Tensor]:
    """Return copies of what a fresh adapter trains in full: parameters and buffers by path.

    Args:
        model: The base.
        config: Whose `modules_to_save` are paths, as `saved_modules` gives them.
        adapted: The modules that get A and B.
    """
    saved = [str(path) for path in pattern_list(config.modules_to_save)]
    targets = {target.name for target in adapted}
    chosen: dict[str, Tensor] = {}
    for module, names in named_once(model):
        for leaf, tensor in {**module._parameters, **module._buffers}.items():  # pyright: ignore[reportPrivateUsage]
            is_bias = leaf == "bias" and (config.bias == "all" or (config.bias == "lora_only" and names[0] in targets))
            if tensor is not None and (is_bias or (saved and is_inside(names[0], saved))):
                values = data_of(module, leaf) if tensor.is_meta else tensor
                chosen[joined(names[0], leaf)] = values.detach().clone()
    return chosen


# Attach, switch, take off


def check_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless each of these can be put in place of a parameter or buffer of the model.

    Raises:
        AdapterError: One can't, with the reason.
    """
    for path in tensors:
        owner, host, inside = _places(model, path)
        kind = layer_type_of(owner)
        tensor: Tensor = getattr(owner, path.rpartition(".")[2])
        if (kind is not None and kind.quantised is not None and path.endswith("weight")) or is_opaque(tensor):
            raise AdapterError(f'"{path}" is quantised and can\'t be trained in full; leave it out of modules_to_save.')
        if in_eight_bits(tensor):
            raise AdapterError(f'"{path}" is stored in 8-bit floats and can\'t be trained in full; leave it out.')
        child = host._modules.get(_child_name(inside))  # pyright: ignore[reportPrivateUsage]
        if child is not None and not isinstance(child, TrainedModules):
            raise AdapterError(
                f'"{path}" can\'t be trained in full: its module has a submodule "{TRAINED_CHILD}" of another making.'
            )
        if isinstance(host, (*_CONTAINERS, nn.RNNBase)) or path.rpartition(".")[2] in owner.__dict__:
            raise AdapterError(
                f'"{path}" can\'t be trained in full: a {type(host).__name__} reads it in its own way. '
                "Leave it out of modules_to_save and bias."
            )


def attach_trained(model: nn.Module, name: str, tensors: Mapping[str, Tensor], config: LoRAConfig) -> None:
    """Add an adapter's own parameters, in the type and on the device of the base's.

    Args:
        model: The base.
        name: The adapter.
        tensors: Path of a parameter or buffer -> values, which `check_trained` has let pass.
        config: Whose `modules_to_save` are paths. What it doesn't announce is not trained: embeddings of an enlarged
            vocabulary.
    """
    saved = [str(path) for path in pattern_list(config.modules_to_save)]
    for path, tensor in tensors.items():
        owner, host, inside = _places(model, path)
        trained = host._modules.get(_child_name(inside))  # pyright: ignore[reportPrivateUsage]
        if not isinstance(trained, TrainedModules):
            trained = TrainedModules(host, inside)
            host.add_module(_child_name(inside), trained)
        if name not in trained.own:
            trained.own[name] = Replacement()
        leaf = path.rpartition(".")[2]
        learns = is_inside(path, saved) or (leaf == "bias" and config.bias != "none")
        base: Tensor = getattr(owner, leaf)
        device = torch.device("cpu") if base.is_meta else base.device  # a base whose numbers are offloaded
        values = tensor.detach().to(device, base.dtype, copy=True)
        if leaf in owner._buffers:  # pyright: ignore[reportPrivateUsage]
            register(trained.own[name], leaf, values)
        else:
            register(trained.own[name], leaf, nn.Parameter(values, base.is_floating_point() and learns))


def _child_name(inside: str) -> str:
    return f"{TRAINED_CHILD}_{inside}" if inside else TRAINED_CHILD


def _places(model: nn.Module, path: str) -> tuple[nn.Module, nn.Module, str]:
    """Return a parameter's owner; the module whose forward reads it; and the owner's path in that."""
    owner_path = path.rpartition(".")[0]
    owner = submodule(model, owner_path)
    if type(owner).__name__ != "NonDynamicallyQuantizableLinear":
        return owner, owner, ""
    # An attention reads the weights of its output layer and never calls it.
    above, _, inside = owner_path.rpartition(".")
    return owner, submodule(model, above), inside


def trained_readers(model: nn.Module, paths: Iterable[str]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return the owners of parameters that are trained in full, and the modules whose forwards are to read them.

    Those that several modules share are left out: each has its own in the place of its own.
    """
    times = Counter(id(p) for module in model.modules() for p in module._parameters.values())  # pyright: ignore[reportPrivateUsage]
    found: dict[str, tuple[nn.Module, nn.Module]] = {}
    for path in paths:
        owner, host, _ = _places(model, path)
        if times[id(owner._parameters.get(path.rpartition(".")[2]))] == 1:  # pyright: ignore[reportPrivateUsage]
            found[path] = owner, host
    return found


def check_one_trained(model: nn.Module, names: Iterable[str]) -> None:
    """Raise where two of these adapters replace the same parameter: their sum would mean nothing.

    Raises:
        AdapterError: In these cases.
    """
    names = [*dict.fromkeys(names)]
    for path, (_, trained) in trained_modules(model).items():
        both = [name for name in names if name in trained.own]
        if len(both) > 1:
            raise AdapterError(
                f'Adapters "{both[0]}" and "{both[1]}" both train "{path}" in full; only one can be active.'
            )


def activate_trained(model: nn.Module, names: Iterable[str]) -> None:
    """Activate the parameters of these adapters, checked by `check_one_trained`."""
    names = [*names]
    for _, trained in trained_modules(model).values():
        trained.switch(next((name for name in names if name in trained.own), ""))


def remove_trained(model: nn.Module, name: str | None) -> None:
    """Forget an adapter's parameters, or all (then a merged layer gets its own back, unless they were freed)."""
    for layer, trained in trained_modules(model).values():
        if name is None:
            trained.restore(layer)
            trained.own.clear()
        elif name in trained.own:
            del trained.own[name]
            trained.parked.pop(name, None)
            trained.active = "" if trained.active == name else trained.active
        if not len(trained.own):
            for handle in (*trained.handles, trained.loading):
                handle.remove()
            delattr(layer, _child_name(trained.inside))


def joined(*parts: str) -> str:
    """Return a path of its parts; empty ones are left out."""
    return ".".join(part for part in parts if part)
