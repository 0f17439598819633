"""Tokens whose rows an adapter trains: in which layers, and as which targets."""

from collections.abc import Mapping, Sequence

from torch import nn

from rankwise.errors import TargetError, suggest
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer_types import layer_type_of
from rankwise.lora.layer_types.tokens import checked_tokens, token_type
from rankwise.lora.targets.modules import Named
from rankwise.lora.targets.patterns import Patterns
from rankwise.lora.targets.readers import Weight, reader_of
from rankwise.lora.targets.target import Target
from rankwise.lora.targets.ties import Tie, sharers


def token_targets(model: nn.Module, modules: Sequence[Named], config: LoRAConfig, untie: bool = False) -> list[Target]:
    """Return the targets of `trainable_tokens`.

    Args:
        model: The model.
        modules: All its modules.
        config: The configuration.
        untie: Whether a layer that shares its weight is to get its own copy.

    Raises:
        TargetError: No layer, or none that is known, has these rows.
    """
    return [
        token_target(model, modules, module, names, tokens, untie)
        for (module, names), tokens in _layers_with_tokens(model, modules, config)
    ]


def _layers_with_tokens(
    model: nn.Module, modules: Sequence[Named], config: LoRAConfig
) -> list[tuple[Named, Sequence[int]]]:
    wanted = config.trainable_tokens
    if not isinstance(wanted, Mapping):
        return [(input_embedding(model, modules), wanted)] if wanted else []
    patterns = Patterns(wanted)
    found: list[tuple[Named, Sequence[int]]] = []
    weights: dict[int, tuple[str, Sequence[int]]] = {}
    for module, names in modules:
        if matching := patterns.matching(names, module):
            patterns.mark(matching)
            tokens = wanted[str(matching[0])]
            key = id(getattr(module, "weight", module))
            other, same = weights.setdefault(key, (names[0], tokens))
            if list(same) != list(tokens):
                raise TargetError(
                    f'"{names[0]}" and "{other}" share one weight, and trainable_tokens gives them different tokens. '
                    "Give one of them all."
                )
            if other == names[0]:
                found.append(((module, names), tokens))
    if unused := patterns.unused():
        names = [name for _, own in modules for name in own]
        raise TargetError(f'No module matches trainable_tokens "{unused[0]}".{suggest(str(unused[0]), names)}')
    return found


def input_embedding(model: nn.Module, modules: Sequence[Named]) -> Named:
    """Return the embedding for a list of tokens: a transformers model's input embedding, or the only one.

    Raises:
        TargetError: There is none, or several.
    """
    by_module = dict(modules)
    own = own_embedding(model, "input")
    if own is not None and own in by_module:
        return own, by_module[own]
    found = [(module, names) for module, names in modules if isinstance(module, nn.Embedding)]
    if len(found) != 1:
        there = ", ".join(f'"{names[0]}"' for _, names in found) or "none"
        raise TargetError(
            f"trainable_tokens is a list, which means the one Embedding of the {type(model).__name__}; it has {there}. "
            "Name the layer: trainable_tokens={name: tokens}."
        )
    return found[0]


def own_embedding(model: nn.Module, which: str) -> nn.Module | None:
    """Return a transformers model's "input" or "output" embeddings; None if it has none."""
    get = getattr(model, f"get_{which}_embeddings", None)
    try:
        found = get() if callable(get) else None
    except NotImplementedError:  # wav2vec2's
        return None
    return found if isinstance(found, nn.Module) else None


def token_target(
    model: nn.Module,
    modules: Sequence[Named],
    module: nn.Module,
    names: Sequence[str],
    tokens: Sequence[int],
    untie: bool = False,
) -> Target:
    """Return single rows of a layer's weight as a target; layers with the same weight see the rows too.

    Raises:
        TargetError: The layer, or one that shares its weight, doesn't have these rows.
    """
    kind = layer_type_of(module)
    chosen = checked_tokens(names[0], module, kind, tokens)
    if kind is None:  # rows_of has refused it
        raise TargetError(f'"{names[0]}" is no layer.')
    weight = Weight(module, list(names), "weight", kind)
    shared = sharers(modules)
    users = shared.get(weight.tensor, []) if weight.tensor is not None else []
    ties = tuple(_tie(model, *user, chosen) for user in users if user[0] is not module and not untie)
    return Target(
        name=names[0],
        module=module,
        layer_type=token_type(kind, module, chosen),
        d_in=0,
        d_out=token_type(kind, module, chosen).dims(module)[1],
        r=len(chosen),
        alpha=float(len(chosen)),
        scale=1.0,
        aliases=(*names[1:], *(name for tie in ties for name in tie.names)),
        ties=ties,
        untie=untie and bool(users),
        reader=reader_of(model, weight),
    )


def _tie(model: nn.Module, module: nn.Module, names: list[str], tokens: tuple[int, ...]) -> Tie:
    kind = layer_type_of(module)
    checked_tokens(names[0], module, kind, tokens)
    if kind is None:  # rows_of has refused it
        raise TargetError(f'"{names[0]}" is no layer.')
    # Not flipped: however a layer reads the weight, B is added to its rows.
    reader = reader_of(model, Weight(module, names, "weight", kind))
    return Tie(tuple(names), module, token_type(kind, module, tokens), False, reader)
