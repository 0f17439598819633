"""From patterns to the matching modules, each with its rank and scale; and the modules left out, with reasons."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from rankwise.errors import TargetError, suggest
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer_types import LayerType, obstacle
from rankwise.lora.layer_types.sliced import Slice, ranges_of, sliced_type
from rankwise.lora.targets.modules import Named, named_once
from rankwise.lora.targets.patterns import Patterns, is_plain, pattern_list
from rankwise.lora.targets.readers import Weight, layers_and_owned, other_parameters, reader_of
from rankwise.lora.targets.target import LeftOut, Target, Targets
from rankwise.lora.targets.ties import Tie, find_ties, sharers
from rankwise.lora.targets.token_rows import token_targets
from rankwise.lora.variants import form_name

ALL_LINEAR = "all-linear"
UNNAMED = "no target names it"
BY_NAME_ONLY = "by name only"
"""Reason for which "all-linear" leaves out adaptable weights that aren't matrices."""


def find_targets(model: nn.Module, config: LoRAConfig, *, untie: bool = False) -> Targets:
    """Find the weights that a configuration adapts. The model is not changed.

    Patterns match modules. One that matches no module is tried on the parameters of modules.

    Args:
        model: Any module; it may itself be the layer.
        config: Whose `target_modules`, `exclude_modules`, `rank_pattern`, `alpha_pattern`, `slices` and
            `trainable_tokens` are read.
        untie: Whether to copy the weight of a target that shares it. Otherwise its adapter acts in
            every module that has the weight.

    Returns:
        The targets in the model's order, and the modules with weights that are left out.

    Raises:
        TargetError: A pattern matches nothing, or a name matches something that can't be adapted; a target's
            weight is shared by something that can't use its adapter; nothing is left to adapt.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = find_targets(model, LoRAConfig(r=2, target_modules="0"))
        >>> [(t.name, t.parameters) for t in found.adapted], [(o.name, o.reason) for o in found.left_out]
        ([('0', 24)], [('2', 'no target names it')])
    """
    modules = named_once(model)
    choice = _Choice(modules, config)
    for weight in layers_and_owned(modules):
        choice.take(weight)
    parameters = list(other_parameters(modules))
    untried = Patterns(choice.targets.unused())
    for weight in parameters:
        choice.take(weight, untried)
    choice.require_all_used(parameters)
    place = {module: i for i, (module, _) in enumerate(modules)}
    chosen, left_out = sorted(choice.chosen, key=lambda weight: place[weight.module]), choice.left_out
    if not chosen:
        reasons = ", ".join(f'"{out.name}" ({out.reason})' for out in left_out[:5]) or "it has no linear layer"
        raise TargetError(f"Nothing in the {type(model).__name__} is left to adapt: {reasons}.")
    shared = sharers(modules)
    ties: dict[str, tuple[Tie, ...]] = {}
    if shared and not untie:
        chosen, ties = find_ties(model, modules, chosen, choice.excluded)
        acting = {weight.names[0] for weight in chosen} | {tie.name for found in ties.values() for tie in found}
        left_out = [entry for entry in left_out if entry.name not in acting]
    targets = _targets_of(model, chosen, config, ties, shared.keys() if untie else ())
    if config.trainable_tokens:
        targets = _with_tokens(targets, token_targets(model, modules, config, untie), place)
        acting = {name for target in targets for name in (target.name, *target.aliases)}
        left_out = [entry for entry in left_out if entry.name not in acting]
    return Targets(targets, left_out)


def _with_tokens(targets: list[Target], tokens: list[Target], place: Mapping[nn.Module, int]) -> list[Target]:
    """Insert single rows among the other targets, in the model's order.

    Raises:
        TargetError: A layer has both.
    """
    known = {name: target.name for target in targets for name in (target.name, *target.aliases)}
    for target in tokens:
        if both := next((name for name in (target.name, *target.aliases) if name in known), None):
            raise TargetError(
                f'"{known[both]}" is a target of A and B, and trainable_tokens trains rows of the same weight. '
                f'Leave out one of them: exclude_modules="{known[both]}", or trainable_tokens.'
            )
    return sorted([*targets, *tokens], key=lambda target: place[target.module])


class _Choice:
    """Collects the adapted weights and those left out.

    Args:
        modules: All modules of the model.
        config: The configuration.
    """

    def __init__(self, modules: Sequence[Named], config: LoRAConfig) -> None:
        wanted = pattern_list(config.target_modules)
        self.all_linear = ALL_LINEAR in wanted
        self.targets = Patterns(pattern for pattern in wanted if pattern != ALL_LINEAR)
        self.excludes = Patterns(pattern_list(config.exclude_modules))
        self.heads = output_heads(modules) if self.all_linear else {}
        self.chosen: list[Weight] = []
        self.left_out: list[LeftOut] = []
        self.excluded: set[nn.Module] = set()
        self.adaptable: list[str] = []

    def take(self, weight: Weight, untried: Patterns | None = None) -> None:
        """Add a weight to `chosen`, or to `left_out` with the reason.

        Args:
            weight: The weight.
            untried: For a parameter: the patterns that matched no module.

        Raises:
            TargetError: It is named, and can't be adapted.
        """
        module, kind, names = weight.module, weight.layer_type, [*weight.names, *weight.also]
        found = (untried or self.targets).matching(names, module)
        excluded = self.excludes.matching(names, module)
        is_layer = kind is None or kind.name != "Parameter"
        blocked = obstacle(module) if is_layer else ""
        if excluded:
            self.excluded.add(module)
        if not blocked:
            self.targets.mark(found)
            self.excludes.mark(excluded)
            self.adaptable += names if untried is None else ()
        elif any(isinstance(pattern, str) and is_plain(pattern) for pattern in found) and not excluded:
            self._refuse(weight, blocked)
        reason = self._reason(weight, bool(found), bool(excluded), blocked)
        if not reason and kind is not None:
            self.chosen.append(weight)
        elif kind is not None and (untried is None or reason != UNNAMED):
            self.left_out.append(LeftOut(weight.names[0], type(module).__name__ if is_layer else "Parameter", reason))

    def _reason(self, weight: Weight, found: bool, excluded: bool, blocked: str) -> str:
        """Return why a weight gets no adapter, or an empty string."""
        kind = weight.layer_type
        if kind is None or (not found and not self.all_linear):
            return UNNAMED
        if excluded or blocked:
            return "excluded" if excluded else blocked
        if found:
            return ""
        return self.heads.get(weight.module, "") if kind.linear else BY_NAME_ONLY

    def _refuse(self, weight: Weight, blocked: str) -> None:
        """Raise, unless the name may mean a parameter."""
        name, module = weight.names[0], weight.module
        if weight.layer_type is None and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            blocked += f'. Name its parameter, for example "{_first_matrix(name, module)}"'
        message = f'"{name}" ({type(module).__name__}) can\'t be adapted: {blocked}.'
        if any(not obstacle(child) for child in module.modules()):
            message += f' Name the layers inside it, for example "{name}.*".'
        raise TargetError(message)

    def require_all_used(self, parameters: Sequence[Weight]) -> None:
        """Raise for a pattern that matched nothing."""
        if self.targets.unused() or self.excludes.unused():
            names = [*self.adaptable, *(name for weight in parameters for name in weight.names)]
            _require_all_used(self.targets, "module matches target", self.adaptable, names)
            _require_all_used(self.excludes, "layer matches exclude_modules", self.adaptable, names)


def _first_matrix(name: str, module: nn.Module) -> str:
    parameter = next(own for own, p in module.named_parameters(recurse=False) if p.ndim > 1)
    return f"{name}.{parameter}" if name else parameter


def _targets_of(
    model: nn.Module,
    chosen: Sequence[Weight],
    config: LoRAConfig,
    ties: Mapping[str, tuple[Tie, ...]],
    untied: Collection[nn.Parameter],
) -> list[Target]:
    ranks, alphas, slices = Patterns(config.rank_pattern), Patterns(config.alpha_pattern), Patterns(config.slices)
    result: list[Target] = []
    known: list[str] = []
    for weight in chosen:
        module, kind, own = weight.module, weight.layer_type, weight.names
        if kind is None:
            continue
        tied = ties.get(own[0], ())
        aliases = (*own[1:], *(name for tie in tied for name in tie.names))
        names = [own[0], *aliases, *weight.also]
        known += names
        rank_keys, alpha_keys = ranks.matching(names, module), alphas.matching(names, module)
        ranks.mark(rank_keys)
        alphas.mark(alpha_keys)
        r = config.rank_pattern[str(rank_keys[0])] if rank_keys else config.r
        alpha = config.alpha_pattern[str(alpha_keys[0])] if alpha_keys else config.alpha
        if slice_keys := slices.matching(names, module):
            slices.mark(slice_keys)
            kind = _sliced(own[0], module, kind, config.slices[str(slice_keys[0])], bool(tied))
        d_in, d_out = kind.dims(module)
        result.append(
            Target(
                name=own[0],
                module=module,
                layer_type=kind,
                d_in=d_in,
                d_out=d_out,
                r=r,
                alpha=alpha,
                scale=config.scale(r, alpha),
                aliases=aliases,
                ties=tied,
                untie=weight.tensor in untied,
                parameter=weight.parameter,
                reader=reader_of(model, weight),
                variant=form_name(config, kind),
            )
        )
    _require_all_used(ranks, "adapted module matches rank_pattern", known, known)
    _require_all_used(alphas, "adapted module matches alpha_pattern", known, known)
    _require_all_used(slices, "adapted module matches slices", known, known)
    return result


def _sliced(name: str, module: nn.Module, kind: LayerType, slices: Sequence[Slice], is_tied: bool) -> LayerType:
    if is_tied or kind.outputs is None or kind.reads_indices or kind.stack(module) > 1:
        raise TargetError(
            f"\"{name}\" can't be adapted on slices: its weight is shared, or isn't one matrix of outputs."
        )
    return sliced_type(kind, ranges_of(name, slices, kind.dims(module)[1]))


def _require_all_used(patterns: Patterns, what: str, shown_names: Sequence[str], names: Sequence[str]) -> None:
    """Raise for the first pattern that matched nothing; the message lists candidates and the nearest name."""
    for pattern in patterns.unused():
        ends = sorted({name.rsplit(".", 1)[-1] for name in shown_names})
        shown = ", ".join(ends[:12]) + (", ..." if len(ends) > 12 else "")
        there = f"Those there are end in: {shown}." if shown else "There are none at all."
        if not isinstance(pattern, str):
            raise TargetError(f"No {what} {getattr(pattern, '__name__', pattern)!r} (a predicate). {there}")
        near = [*ends, *names, *(name.rsplit(".", 1)[-1] for name in names)]
        if what.startswith("module"):
            there = there.replace("Those there are", "Those that can be adapted")
        raise TargetError(f'No {what} "{pattern}". {there}{suggest(pattern, near)}')


def output_heads(modules: Sequence[Named]) -> dict[nn.Module, str]:
    """Find the output heads of transformers models, which "all-linear" leaves out."""
    heads: dict[nn.Module, str] = {}
    for module, _ in modules:
        get_head = getattr(type(module), "get_output_embeddings", None)
        head = get_head(module) if get_head else None
        if isinstance(head, nn.Module):
            heads[head] = "output head; name it to adapt it"
    return heads
