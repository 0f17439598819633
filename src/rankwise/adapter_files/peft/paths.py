"""PEFT's view of a model's weights: what it wraps, the keys of tensors, and the names in its settings.

A wrapped module's own parts lie in its `base_layer`. PEFT wraps an attention for its in_proj, and a module once for
each of its bare parameters that is adapted (`target_parameters`); the last of them in the module's order is outermost:

| weight | path of its A and B |
|---|---|
| `up` of `experts`, where `up`, `down` are adapted | `experts.base_layer` |
| `down` | `experts` |
| `fc`, a layer inside | `experts.base_layer.base_layer.fc` |
| `in_proj_weight` of the attention `a` | `a` |
| `a.out_proj` | `a.base_layer.out_proj` |
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from rankwise.adapter_files.peft.keys import BASE_LAYER, TOKENS_OWNER
from rankwise.lora.adapter import LoRA
from rankwise.lora.targets.modules import Named
from rankwise.lora.trained_modules import joined

IN_PROJ, OUT_PROJ = "in_proj_weight", "out_proj"
"""The parts of an attention that PEFT adapts under the attention's own name."""

_EXPERTS = {"gate_up_proj", "down_proj"}
"""Stacks by which transformers' models with fused experts are known."""

_EXPERT_WORDS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Last words of targets that PEFT reads as the experts' parameters in such models, whatever comes before them."""


@dataclass(frozen=True)
class PeftLocation:
    """A weight as PEFT has it.

    Args:
        path: Where its A and B lie in a file.
        name: What targets and patterns of the settings call it.
        bare: Whether it is one of `target_parameters`; else its module is one of `target_modules`.
    """

    path: str
    name: str
    bare: bool


class PeftPaths:
    """The modules that PEFT wraps in a model, and so its path of each weight.

    Args:
        bare: Module -> its adapted bare parameters, in the module's order.
        attentions: Attentions that PEFT adapts as such.
        modules: All modules, with all their paths.

    Examples:
        >>> model = nn.ModuleDict({"a": nn.MultiheadAttention(2, 1)})
        >>> paths = PeftPaths({}, {model["a"]}, [(model["a"], ["a"])])
        >>> paths.place(model["a"], "a", "in_proj_weight").path, paths.place(model["a"].out_proj, "a.out_proj").path
        ('a', 'a.base_layer.out_proj')
    """

    def __init__(
        self, bare: Mapping[nn.Module, Sequence[str]], attentions: Collection[nn.Module], modules: Iterable[Named]
    ) -> None:
        self._bare = bare
        self._wraps: dict[str, int] = {}
        self._attentions: set[str] = set()
        for module, names in modules:
            wraps = len(bare.get(module, ()))
            if not wraps and module in attentions:
                wraps = 1
                self._attentions.update(names)
            if wraps:
                self._wraps.update(dict.fromkeys(names, wraps))

    def place(self, module: nn.Module, name: str, parameter: str = "weight") -> PeftLocation:
        """Return where PEFT has a weight.

        Args:
            module: The module that has it.
            name: The module's path.
            parameter: Its name in the module.
        """
        path, own = self._inside(name), self._bare.get(module, ())
        if not self._wraps:
            return PeftLocation(path, name, False)
        if parameter in own:
            wrapped = len(own) - 1 - own.index(parameter)
            return PeftLocation(joined(path, *[BASE_LAYER] * wrapped), joined(name, parameter), True)
        owner, _, leaf = name.rpartition(".")
        is_out_proj = leaf == OUT_PROJ and owner in self._attentions
        return PeftLocation(path, owner if is_out_proj else name, False)

    def saved_name(self, name: str, adapted: Collection[str], with_tokens: Collection[str] = ()) -> str:
        """Return where PEFT has a parameter that is trained in full.

        Args:
            name: Its path in the model.
            adapted: Paths of the adapted modules in the file.
            with_tokens: Paths of the modules of which single rows are trained.

        Examples:
            >>> PeftPaths({}, (), ()).saved_name("up.bias", {"up"})
            'up.base_layer.bias'
        """
        owner, _, leaf = name.rpartition(".")
        path = self._inside(owner)
        if owner in with_tokens:
            return joined(path, TOKENS_OWNER, BASE_LAYER, leaf)
        wraps = self._wraps.get(owner, int(path in adapted))
        return joined(path, *[BASE_LAYER] * wraps, leaf)

    def _inside(self, name: str) -> str:
        """Return a module's path, with what wraps the modules around it."""
        if not self._wraps:
            return name
        found: list[str] = []
        if name and "" in self._wraps:
            found += [BASE_LAYER] * self._wraps[""]
        pieces = name.split(".")
        for end, piece in enumerate(pieces, 1):
            found.append(piece)
            if end < len(pieces):
                found += [BASE_LAYER] * self._wraps.get(".".join(pieces[:end]), 0)
        return ".".join(found)


def paths_of_layers(modules: Sequence[Named], layers: Mapping[str, tuple[nn.Module, LoRA]], plain: bool) -> PeftPaths:
    """Return where PEFT has the weights of an adapter.

    Args:
        modules: All modules of the model.
        layers: Its adapted layers.
        plain: Whether the adapter is one of plain LoRA; PEFT takes no other on parameters.
    """
    bare: dict[nn.Module, set[str]] = {}
    attentions = {module for module, _ in modules if isinstance(module, nn.MultiheadAttention)}
    for layer, lora in layers.values():
        if lora.is_parameter and not (layer in attentions and lora.parameter == IN_PROJ):
            bare.setdefault(layer, set()).add(lora.parameter)
    fused = plain and _has_fused_experts(modules)
    for path, (layer, lora) in layers.items():
        misread = fused and lora.layer_type.matrix and path.rpartition(".")[2] in _EXPERT_WORDS
        if layer in bare or misread:
            bare.setdefault(layer, set()).add(lora.parameter)
    ordered = {layer: [name for name in _own(layer) if name in names] for layer, names in bare.items()}
    adapted = {
        module
        for module, names in modules
        if module in attentions and any(joined(name, leaf) in layers for name in names for leaf in (IN_PROJ, OUT_PROJ))
    }
    return PeftPaths(ordered, adapted, modules)


def _has_fused_experts(modules: Sequence[Named]) -> bool:
    """Tell whether PEFT may take names of layers for the experts' parameters: in a transformers model with such."""
    if not hasattr(getattr(modules[0][0], "config", None), "model_type"):
        return False
    owned = (module._parameters.items() for module, _ in modules)  # pyright: ignore[reportPrivateUsage]
    return any(name in _EXPERTS and p is not None and p.ndim == 3 for found in owned for name, p in found)


def paths_of_file(modules: Sequence[Named], target_parameters: Collection[str]) -> PeftPaths:
    """Return where PEFT has the weights of a model under a file's `target_parameters`.

    Args:
        modules: All modules of the model.
        target_parameters: Paths of parameters, or their ends after a dot.
    """
    bare = {module: found for module, names in modules if (found := list(_meant(module, names[0], target_parameters)))}
    attentions = [module for module, _ in modules if isinstance(module, nn.MultiheadAttention)]
    return PeftPaths(bare, attentions, modules)


def _meant(module: nn.Module, name: str, target_parameters: Collection[str]) -> Iterator[str]:
    for own in _own(module) if target_parameters else ():
        path = f"{name}.{own}"
        if path in target_parameters or any(path.endswith(f".{end}") for end in target_parameters):
            yield own


def _own(module: nn.Module) -> list[str]:
    """Return the names of a module's parameters in their order, without those that it doesn't have."""
    own = module._parameters  # pyright: ignore[reportPrivateUsage]
    return [name for name, parameter in own.items() if parameter is not None]
