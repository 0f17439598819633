"""How the rank of an update is chosen: one for all, or the smallest that is near enough."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rankwise.errors import ConfigError, option
from rankwise.surgery.spectra import error_of_energy, rank_for_error


@dataclass(frozen=True)
class RankRule:
    """How many singular values stay.

    Args:
        of: Singular values, the largest first -> rank.
        rank: The rank, where it is one for all.
    """

    of: Callable[[Tensor], int]
    rank: int | None = None


def rank_rule(rank: int | None, energy: float | None, error: float | None) -> RankRule:
    """Return the rule that one of three settings makes.

    Args:
        rank: One rank for all.
        energy: Share of the squared Frobenius norm that is to stay, in (0, 1].
        error: Relative error allowed, in the Frobenius norm, in [0, 1).

    Raises:
        ConfigError: Not exactly one is given, or it is out of its range.

    Examples:
        >>> import torch
        >>> rank_rule(None, 0.9, None).of(torch.tensor([3.0, 1.0, 0.1]))
        2
        >>> rank_rule(None, None, None)
        Traceback (most recent call last):
        rankwise.errors.ConfigError: Nothing is given; give one of rank, energy, error.
    """
    settings = {"rank": rank, "energy": energy, "error": error}
    given = [name for name, value in settings.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(map(option, settings))
        what = f"{' and '.join(map(option, given))} are" if given else "Nothing is"
        raise ConfigError(f"{what} given; give one of {names}.")
    if rank is not None:
        if rank < 1:
            raise ConfigError(f"{option('rank')} is {rank}; a rank is at least 1.")
        return RankRule(lambda S: rank, rank)
    if energy is not None:
        if not 0 < energy <= 1:
            raise ConfigError(f"{option('energy')} is {energy:g}; a share in (0, 1] is needed, such as 0.95.")
        error = error_of_energy(energy)
    allowed = error or 0.0
    if not 0 <= allowed < 1:
        raise ConfigError(f"{option('error')} is {allowed:g}; a relative error in [0, 1) is needed, such as 0.1.")
    return RankRule(lambda S: rank_for_error(S, allowed))
