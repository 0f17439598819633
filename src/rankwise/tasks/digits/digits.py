"""The digits experiment: how many parameters does a small network need to learn five new digits?

A multilayer perceptron learns the digits 0-4; that is the base. LoRA at several ranks, and full fine-tuning,
then teach it 5-9, whose labels reuse the base's five outputs. The idea, the network and the `published` protocol are
those of a notebook, "LoRA from Scratch", that implements arXiv 2106.09685 by hand.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import CheckpointError, ConfigError, DataError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.optimisers import optimiser_of
from rankwise.results import Method
from rankwise.results.origin import Published, PublishedRow
from rankwise.streams import stream_seed
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.naming import distinct_names, label_in_words
from rankwise.sweeps.floors import class_shares, majority_class
from rankwise.sweeps.problem import Problem, Splits
from rankwise.tasks.digits.mnist import RawDigits, Split
from rankwise.tasks.options import DigitsOptions
from rankwise.train.data.cuts import pooled
from rankwise.train.data.tensors import tensors_of
from rankwise.train.loop import PackTraining
from rankwise.train.machine.interrupts import stop_on_signals
from rankwise.train.outcome import Outcome
from rankwise.train.settings import Training

OLD, NEW = range(5), range(5, 10)
"""The digits the base knows, and those it is to learn."""

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's training pixels divided by 255; the notebook's numbers."""

MODULES = ("0", "3", "6")
"""The layers with weights, all of which full fine-tuning trains."""


def make_model() -> nn.Sequential:
    """The notebook's network, 784 - 64 - 64 - 5: 54,725 parameters."""
    return nn.Sequential(
        nn.Linear(784, 64),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 5),
        nn.LogSoftmax(dim=-1),
    )


def loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """Negative log-likelihood of each row's label."""
    return F.nll_loss(outputs, batch[1], reduction="none")


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """1 where the likeliest label is the right one, else 0."""
    return (outputs.argmax(-1) == batch[1]).float()


def select_digits(split: Split, digits: range, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images of some digits as rows of standardised pixels, and labels counted from the first of them.

    Raises:
        DataError: None of the images shows one of the digits.
    """
    labels = torch.as_tensor(split.labels).long()
    images = torch.as_tensor(split.images)
    chosen = (labels >= digits.start) & (labels < digits.stop)
    if not chosen.any():
        raise DataError(f"There is no image with a label from {digits.start} to {digits.stop - 1} in the data.")
    pixels = (images[chosen].flatten(1).float() / 255 - MEAN) / STD
    return pixels.to(device), (labels[chosen] - digits.start).to(device)


@dataclass(frozen=True)
class Protocol:
    """The protocol of the experiment.

    Args:
        pretraining: Of the base, on the digits 0-4.
        lora: Every adapter's settings but its rank and seed.
        alpha_is_r: Whether alpha follows r, so that the scale alpha / r is 1 (the notebook does not divide by r).
        training: Of an adapter, at the first learning rate.
        lrs: Learning rates of the adapters.
        baselines: (name, label, data, training, learning rates) of each full fine-tuning; the last is the reference.
    """

    pretraining: Training
    lora: LoRAConfig
    alpha_is_r: bool
    training: Training
    lrs: tuple[float, ...]
    baselines: tuple[tuple[str, str, str, Training, tuple[float, ...]], ...]


def protocol_of(options: DigitsOptions) -> Protocol:
    """The protocol that the options name, with what they change in it."""
    changes = {"epochs": options.epochs, "batch_size": options.batch_size, "optimiser": options.optimiser}
    changed = {key: value for key, value in changes.items() if value is not None}
    made = _published() if options.protocol == "published" else _standard()
    lora = made.lora if options.alpha is None else replace(made.lora, alpha=options.alpha[0])
    *others, last = made.baselines
    name, label, data, training, lrs = last
    return replace(
        made,
        lora=lora,
        alpha_is_r=made.alpha_is_r and options.alpha is None,
        training=replace(made.training, **changed, lr_ratio=options.lr_ratio),
        lrs=options.lr or made.lrs,
        baselines=(*others, (name, label, data, replace(training, **changed), options.baseline_lr or lrs)),
    )


def _published() -> Protocol:
    """The notebook's settings, and the three baselines that its mistake calls for."""
    pretraining = Training(lr=2e-4, weight_decay=0.01, batch_size=1024, epochs=10, weights="last")
    training = Training(
        lr=2e-4, weight_decay=0.01, batch_size=64, epochs=100, schedule="plateau", patience=10, weights="last"
    )
    return Protocol(
        pretraining=pretraining,
        lora=LoRAConfig(init="notebook", alpha=1.0),
        alpha_is_r=True,
        training=training,
        lrs=(2e-4,),
        baselines=(
            ("full-mistake", "full, notebook's mistake (0-4)", "old", pretraining, (2e-4,)),
            ("full-notebook", "full, notebook's budget", "new", pretraining, (2e-4,)),
            ("full", "full fine-tuning", "new", training, (2e-4,)),
        ),
    )


def _standard() -> Protocol:
    """Equal budgets, standard initialisation and scaling, learning rates chosen on validation data."""
    training = Training(lr=1e-3, batch_size=64, epochs=60, patience=10)
    return Protocol(
        pretraining=Training(lr=1e-3, weight_decay=0.01, batch_size=64, epochs=60, patience=10),
        lora=LoRAConfig(),
        alpha_is_r=False,
        training=training,
        lrs=DIGITS_LRS,
        baselines=(("full", "full fine-tuning", "new", replace(training, weight_decay=0.01), BASELINE_LRS),),
    )


DIGITS_LRS = (3e-4, 1e-3, 3e-3, 1e-2)
BASELINE_LRS = (1e-4, 3e-4, 1e-3, 3e-3)


def digits_candidates(options: DigitsOptions) -> list[Candidate]:
    """The candidates: every rank, and the baselines."""
    protocol = protocol_of(options)
    axes = itertools.product(
        options.variant, options.init or (protocol.lora.init,), options.alpha or (protocol.lora.alpha,)
    )
    adapters = [
        replace(protocol.lora, r=r, alpha=float(r) if protocol.alpha_is_r else alpha, variant=variant, init=init)
        for variant, init, alpha in axes
        for r in options.ranks
    ]
    ranks = [
        Candidate(
            name=name,
            label=label_in_words(name, lora),
            method="lora",
            training=protocol.training,
            lrs=protocol.lrs,
            lora=lora,
            data="new",
        )
        for name, lora in zip(distinct_names(adapters), adapters, strict=True)
    ]
    baselines = [
        Candidate(name=name, label=label, method="full", training=training, lrs=lrs, modules_to_save=MODULES, data=data)
        for name, label, data, training, lrs in protocol.baselines
    ]
    return [*ranks, *baselines]


def make_problem(raw: RawDigits, device: torch.device) -> Problem:
    """The data of the experiment: digits 5-9 to learn, 0-4 to see what is forgotten.

    Training and validation images of 5-9 are one pool, which each seed may split differently.
    """
    new, old = (
        [select_digits(split, digits, device) for split in (raw.train, raw.validation, raw.test)]
        for digits in (NEW, OLD)
    )
    train, validation, rotation = pooled(new[0], new[1])
    splits = {"new": Splits(train, validation, new[2], rotation), "old": Splits(old[0], old[1], old[2])}
    return Problem(
        splits=splits,
        loss=loss,
        metric=accuracy,
        other_tests={"accuracy_on_0_4": splits["old"].test},
        constant=lambda train, rows: majority_class(tensors_of(train)[1], tensors_of(rows)[1]),
        loss_name="log-loss",
        loss_constant=lambda train, rows: class_shares(tensors_of(train)[1], tensors_of(rows)[1]),
    )


def pretrain(problem: Problem, options: DigitsOptions) -> nn.Sequential:
    """Train the base on the digits 0-4. It is the same for all seeds.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, or SIGTERM came; the step under way ended first.
    """
    device = problem.splits["old"].train[0].device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed("digits", "base"))
        model = make_model().to(device)
    training = protocol_of(options).pretraining
    old = problem.splits["old"]
    member = Member(name="base", seed=0, modules_to_save=MODULES, optimiser=optimiser_of(training.optimiser))
    pack = PackTraining(model, [(member, training)], old.train, old.validation, loss, accuracy)
    ended: list[Outcome] = []
    with stop_on_signals() as stop:
        while not pack.done:
            epoch = pack.advance(lambda: stop.asked)
            if stop.asked:
                raise KeyboardInterrupt
            ended += epoch.ended if epoch is not None else []
    (outcome,) = ended
    if outcome.status != "finished":
        raise ConfigError(f"Pretraining the base ended early: {outcome.reason}.")
    model.load_state_dict(outcome.state)
    return model.eval()


def base_from(state: Mapping[str, Tensor], device: torch.device) -> nn.Sequential:
    """The base with weights that were kept.

    Raises:
        CheckpointError: They are of another network.
    """
    model = make_model()
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"The base that was kept does not fit: {' '.join(str(error).split())}") from error
    return model.to(device).eval()


PUBLISHED = {1: (1_000, 0.875), 2: (2_100, 0.931), 4: (4_200, 0.964), 8: (8_400, 0.971)} | {
    16: (16_700, 0.977),
    32: (33_400, 0.980),
    64: (66_900, 0.980),
}
"""The notebook's table: rank -> (trainable parameters, test accuracy)."""

PUBLISHED_BASELINE = (54_700, 0.984)

MISTAKE = (
    "The notebook's baseline was trained and tested on the digits 0-4, for 10 epochs at batch 1024, so its 0.984 is "
    "not the accuracy of full fine-tuning on 5-9; the rows of full fine-tuning repeat the mistake and put it right."
)


def published_table() -> Published:
    """The notebook's table."""
    parameters, metric = PUBLISHED_BASELINE

    def row(label: str, method: Method, r: int | None, n: int, value: float, **more: str) -> PublishedRow:
        return PublishedRow(
            label=label,
            method=method,
            r=r,
            trainable_parameters=n,
            metric=value,
            relative_parameters=n / parameters,
            relative_metric=value / metric,
            **more,
        )

    rows = [row(f"r = {r}", "lora", r, n, value) for r, (n, value) in PUBLISHED.items()]
    rows.append(row("baseline", "full", None, parameters, metric, configuration="full-mistake"))
    return Published(source="LoRA from Scratch (notebook)", note=MISTAKE, rows=rows)
