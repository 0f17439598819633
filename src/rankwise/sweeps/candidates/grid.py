"""The grid of a sweep: candidates, and the runs they become at learning rates and seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from rankwise.errors import ConfigError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.optimisers import optimiser_of
from rankwise.pack.resolved import AdapterState
from rankwise.results.kinds import Method
from rankwise.sweeps.candidates.naming import check_distinct, check_name, folder_name
from rankwise.sweeps.problem import DEFAULT_DATA, Run
from rankwise.train.settings import Training

LORA_LRS = (1e-4, 3e-4, 1e-3)
"""Learning rates of adapters, unless the user gives others."""

BASELINE_SHARE = 0.1
"""Full fine-tuning's learning rates, as a share of the adapters' (Schulman et al., LoRA Without Regret, 2025)."""

HEAD_TIMES = 10.0
"""Learning rates of a head that is trained alone, as a multiple of the adapters': it has to move much further."""


def _from_the_model(seed: int) -> AdapterState:
    return {}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that is tried: all of its runs but learning rate and seed.

    Args:
        name: For example "r8"; unique.
        label: In words.
        method: "lora", "full" or "head".
        training: How it is trained; its learning rate is not used.
        lrs: Learning rates to try.
        lora: The adapter, its seed aside; None where nothing is trained low-rank.
        modules_to_save: Names of modules that are trained in full.
        head_lr_multiplier: Their learning rate, as a multiple of the run's.
        head_lr_multiplier_for: Those of them that it is meant for, the others taking the run's; None for all.
        data: Which of the problem's splits it learns.
        start: Seed -> tensors to start from; those left out start as the settings say.
    """

    name: str
    label: str
    method: Method
    training: Training
    lrs: tuple[float, ...]
    lora: LoRAConfig | None = None
    modules_to_save: tuple[str, ...] = ()
    head_lr_multiplier: float = 1.0
    head_lr_multiplier_for: tuple[str, ...] | None = None
    data: str = DEFAULT_DATA
    start: Callable[[int], AdapterState] = _from_the_model

    def run(self, lr: float, seed: int, data: str | None = None) -> Run:
        """One run, on other data than the candidate's own where they are given."""
        name, training = f"{folder_name(self.name)}-lr{lr:g}-s{seed}", replace(self.training, lr=lr)
        lora = None if self.lora is None else replace(self.lora, seed=seed)
        member = Member(
            name=name,
            seed=seed,
            lora=lora,
            modules_to_save=self.modules_to_save,
            head_lr_multiplier=self.head_lr_multiplier,
            head_lr_multiplier_for=self.head_lr_multiplier_for,
            lr_ratio=training.lr_ratio,
            optimiser=optimiser_of(training.optimiser),
        )
        return Run(name, self.name, self.label, self.method, member, training, data or self.data, self.start(seed))


def runs_of(candidates: Iterable[Candidate], seeds: Sequence[int], data: str | None = None) -> list[Run]:
    """Every run of a grid: candidates, by learning rate, by seed.

    Raises:
        ConfigError: There is none, two have one name, or a name can't be used.
    """
    candidates = list(candidates)
    for candidate in candidates:
        check_name(candidate.name)
    check_distinct(candidate.name for candidate in candidates)
    runs = [c.run(lr, seed, data) for c in candidates for lr in c.lrs for seed in seeds]
    if not runs:
        raise ConfigError("The grid is empty; give at least one configuration, one learning rate and one seed.")
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f'Two runs are called "{twice}"; give configurations names, and each rate and seed once.')
    return runs


def modules_with_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of all modules with their own parameters: what full fine-tuning trains in full.

    Of modules that share all their parameters (an output head tied to an embedding) only the first is named.
    """
    seen: set[int] = set()
    names: list[str] = []
    for name, module in model.named_modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if own - seen:
            names.append(name)
            seen |= own
    return tuple(names)


def wider(candidate: Candidate, lr: float, tried: Sequence[float]) -> float | None:
    """The learning rate to try next where the best one lies at the edge of those tried; None where it doesn't.

    The grid continues by its last step: 3e-4, 1e-3 by 3e-3.

    Examples:
        >>> candidate = Candidate(name="r1", label="", method="lora", training=Training(lr=1.0), lrs=())
        >>> wider(candidate, 1e-3, [1e-4, 1e-3]), wider(candidate, 2.0, [1.0, 2.0, 4.0])
        (0.01, None)
    """
    order = sorted(set(tried))
    if len(order) < 2 or lr not in (order[0], order[-1]):
        return None
    one, other = (order[0], order[1]) if lr == order[0] else (order[-1], order[-2])
    return float(f"{one * one / other:.3g}")
