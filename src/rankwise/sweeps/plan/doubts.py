"""Settings that can be used and that no one can have meant."""

from collections.abc import Iterable

from torch import nn

from rankwise.pack.resolved import resolve
from rankwise.sweeps.problem import Run


def rank_doubts(model: nn.Module, runs: Iterable[Run]) -> list[str]:
    """Warn of configurations whose rank exceeds the rank of every weight they adapt.

    B A has at most the rank of the weight, min(d_in, d_out): a larger r adds parameters that change nothing it can
    express.
    """
    doubts: list[str] = []
    for run in runs:
        targets = [target for target in resolve(model, run.member).targets if not target.layer_type.tokens]
        most = max((min(target.d_in, target.d_out) for target in targets), default=None)
        if most is not None and all(target.r > min(target.d_in, target.d_out) for target in targets):
            least = min(target.r for target in targets)
            doubts.append(
                f'Configuration "{run.configuration}" has rank {least}, above the {most} that its largest adapted '
                f"weight can have; r = {most} can express as much with fewer parameters."
            )
    return doubts
