"""The base's own dropout, off: in modules of torch, and in the rates that transformers' attentions hand on."""

from torch import nn


def silence_dropout(model: nn.Module) -> None:
    """Set every rate of dropout of a model to zero.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        >>> silence_dropout(model)
        >>> model[1].p
        0.0
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            module.p = 0.0
        # Attentions keep their rate as a number: attention_dropout, dropout_prob, ...
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
