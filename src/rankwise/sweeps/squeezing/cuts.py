"""Which trained configurations are cut to which smaller ranks, and the runs that the smaller adapters are."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rankwise.lora.inits import INITS
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.ladders import ladder_key
from rankwise.sweeps.candidates.naming import folder_name
from rankwise.sweeps.problem import Run


@dataclass(frozen=True)
class RankCut:
    """A trained configuration and the smaller ones that it is cut to.

    Args:
        trained: The configuration of the largest rank that was trained.
        smaller: Every configuration that differs from it by a smaller rank, trained or not, the smallest first.
    """

    trained: Candidate
    smaller: tuple[Candidate, ...]

    def run(self, trained: Run, smaller: Candidate) -> Run:
        """A run for the same adapter at a smaller rank.

        Args:
            trained: The run that trained it.
            smaller: One of `smaller`.
        """
        like = smaller.run(trained.training.lr, trained.member.seed)
        configuration = f"{self.trained.name}-to-r{like.r}"
        name = f"{folder_name(configuration)}-lr{trained.training.lr:g}-s{trained.member.seed}"
        return replace(
            like,
            name=name,
            configuration=configuration,
            label=f"{self.trained.label} cut to r = {like.r}",
            member=replace(like.member, name=name),
            training=trained.training,
            data=trained.data,
            start={},
        )


def cuts_of(candidates: Sequence[Candidate], trained: Collection[str]) -> list[RankCut]:
    """Return the cuts of a sweep: of each kind of plain LoRA the largest rank that was trained, to all smaller ones.

    Only the largest is cut, for it costs one evaluation for each smaller rank and seed, where all to all would be
    quadratic, and one cut for each size keeps the chance small that one of many lies within the tolerance by luck.

    Args:
        candidates: All of the sweep.
        trained: Names of those with a finished run.
    """
    kinds: dict[tuple[str | None, str], list[Candidate]] = {}
    for c in candidates:
        # Of an initialisation that moves the base, the update is B A less what it began with.
        if c.lora is not None and c.lora.variant == "lora" and not INITS[c.lora.init].moves:
            kinds.setdefault((ladder_key(c), c.data), []).append(c)
    cuts: list[RankCut] = []
    for group in kinds.values():
        of_rank = {_rank(c): c for c in sorted(group, key=lambda c: c.name in trained)}
        known = [r for r, c in of_rank.items() if c.name in trained]
        smaller = tuple(of_rank[r] for r in sorted(of_rank) if known and r < max(known))
        if smaller:
            cuts.append(RankCut(of_rank[max(known)], smaller))
    return cuts


def _rank(candidate: Candidate) -> int:
    return 0 if candidate.lora is None else candidate.lora.r
