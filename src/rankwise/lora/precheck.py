"""Check and forecast attaching an adapter, before anything is changed."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from rankwise.errors import AdapterError, TargetError
from rankwise.lora.adapter import lora_of
from rankwise.lora.checks.foreign import check_attachable
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer.initial import init_obstacle
from rankwise.lora.layer_types.quantised import in_eight_bits, is_opaque, numbers_in
from rankwise.lora.report import Report
from rankwise.lora.targets.find import Target, Targets
from rankwise.lora.targets.modules import base_tensors, child_name
from rankwise.lora.trained_modules import check_trained
from rankwise.lora.variants import FORMS


def check_targets(
    model: nn.Module,
    targets: Targets,
    config: LoRAConfig,
    replacements: Mapping[str, Tensor],
    *,
    fresh: bool = False,
) -> None:
    """Raise unless an adapter can be attached to these targets.

    Args:
        model: The model the targets were found in.
        targets: The modules to adapt.
        config: The adapter's configuration.
        replacements: Path of a parameter or buffer -> what the adapter has in its place.
        fresh: Whether A and B are still to be drawn.

    Raises:
        AdapterError: A target has a submodule `lora` of another making; a parameter can't be trained in full.
        TargetError: The variant can't adapt a target, or the initialisation can't start it.
    """
    check_attachable(model)
    check_trained(model, replacements)
    for target in targets.adapted:
        variant = FORMS[target.variant]
        reason = variant.obstacle(target.layer_type, target.module)
        if not variant.transposes and any(tie.flipped for tie in target.ties):
            reason = "it shares its weight with a layer that reads it transposed; pass untie=True"
        if reason:
            raise TargetError(f'"{target.name}" can\'t be adapted with variant="{config.variant}": {reason}.')
        if fresh and (reason := init_obstacle(target, config)):
            raise TargetError(f'"{target.name}" can\'t start with init="{config.init}": {reason}.')
        for path, module, parameter in _places(target):
            child = child_name(parameter)
            if hasattr(module, child) and lora_of(module, parameter) is None:
                raise AdapterError(
                    f'"{path}" has an attribute "{child}" already, of type '
                    f"{type(getattr(module, child)).__name__}; it can't be adapted."
                )
            if parameter not in module._parameters and target.reader is not None:  # pyright: ignore[reportPrivateUsage]
                raise AdapterError(
                    f'The weight of "{path}" is computed from other tensors (parametrised) and read without a call, so '
                    "no adapter can act on it. Call torch.nn.utils.parametrize.remove_parametrizations first."
                )
            if target.reader is not None and in_eight_bits(getattr(module, parameter)):
                raise AdapterError(
                    f'The weight of "{path}" is stored in 8-bit floats and read without calling its layer; W + delta '
                    "would be rounded to 8 bits. Leave it out, or load the model in bfloat16."
                )
            hidden = target.layer_type.quantised is not None or is_opaque(getattr(module, parameter))
            if hidden and (target.reader is not None or len(target.ties) > 0):
                raise AdapterError(
                    f'The quantised weight of "{path}" is shared, or read otherwise than by the forward of its listed '
                    f'class, so no adapter can act on it. Leave it out: exclude_modules="{path}".'
                )


def _places(target: Target) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield path, layer and name of the weight, of a target and of the layers tied to it."""
    yield target.name, target.module, target.parameter
    for tie in target.ties:
        yield tie.name, tie.module, "weight"


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that are no adapter's, each once, by name."""
    names: dict[nn.Parameter, str] = {}
    for name, tensor in base_tensors(model, buffers=False).items():
        if isinstance(tensor, nn.Parameter):
            names.setdefault(tensor, name)
    return {name: parameter for parameter, name in names.items()}


def forecast(
    model: nn.Module, targets: Targets, config: LoRAConfig, name: str, replacements: Mapping[str, Tensor]
) -> Report:
    """Return the report that attaching would give; the model is left as it is.

    Raises:
        AdapterError, TargetError: As `check_targets` says.
    """
    check_targets(model, targets, config, replacements, fresh=True)
    numbers = sum(map(numbers_in, base_parameters(model).values()))
    trained = base_tensors(model, buffers=False)
    counts = {
        path: tensor.numel() for path, tensor in replacements.items() if path in trained and tensor.is_floating_point()
    }
    return Report(name, targets.adapted, targets.left_out, numbers, counts)
