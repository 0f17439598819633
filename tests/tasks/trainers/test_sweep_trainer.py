"""Trainers of transformers and TRL: the same losses on the same batches, a sweep each, and what is refused."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import rankwise
from rankwise.errors import ConfigError, RankwiseError
from rankwise.pack.member import Member
from rankwise.tasks.trainers import arguments
from rankwise.tasks.trainers.arguments import (
    NOTED,
    RULES,
    TAKEN_OVER,
    WITHOUT_EFFECT,
    check_trainer,
    training_of,
)
from rankwise.tasks.trainers.sweep_trainer import trainer_problem
from rankwise.train.loop import PackTraining
from text_models import CONFIGS, VOCABULARY, make_model, make_tokenizer

# transformers and TRL warn of what is about to change in them.
pytestmark = pytest.mark.filterwarnings("ignore")

ARGUMENTS = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}


class Recorded(torch.utils.data.Dataset):
    """Examples, and which were read in which order."""

    def __init__(self, examples):
        self.examples, self.read = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        self.read.append(i)
        return dict(self.examples[i])


def sequences(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        length = int(torch.randint(4, 10, (), generator=generator))
        yield torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), i % 3


def pad(examples):
    width = max(len(example["input_ids"]) for example in examples)
    return {
        "input_ids": torch.tensor([e["input_ids"] + [2] * (width - len(e["input_ids"])) for e in examples]),
        "attention_mask": torch.tensor(
            [[1] * len(e["input_ids"]) + [0] * (width - len(e["input_ids"])) for e in examples]
        ),
        "labels": torch.tensor([e["labels"] for e in examples]),
    }


def classifier(seed=0):
    config = CONFIGS["bert"]()
    config.num_labels = 3
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(seed)
    return BertForSequenceClassification(config)


def make_trainer(folder, n=14, cls=Trainer, collator=pad, more=None, **arguments):
    given = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3, **ARGUMENTS, **arguments}
    examples = [{"input_ids": ids, "labels": label} for ids, label in sequences(n)]
    return cls(
        classifier(),
        TrainingArguments(output_dir=str(folder), **given),
        train_dataset=Recorded(examples),
        data_collator=collator,
        **(more or {}),
    )


def make_sft(folder, **arguments):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{'ab' * (i % 4)} say {i} ", "completion": "one two three"[: 3 + i % 7]} for i in range(14)]
    config = trl.SFTConfig(
        output_dir=str(folder),
        bf16=False,
        gradient_checkpointing=False,
        max_length=48,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-3,
        **{**ARGUMENTS, **arguments},
    )
    trainer = trl.SFTTrainer(
        make_model("llama"), config, train_dataset=datasets.Dataset.from_list(rows), processing_class=make_tokenizer()
    )
    trainer.train_dataset = Recorded(list(trainer.train_dataset))
    return trainer


def theirs(trainer):
    """Train as the trainer does: losses of its steps, weights, and which examples it read."""
    losses, compute = [], trainer.compute_loss

    def recorded(*args, **kwargs):
        loss = compute(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.compute_loss = recorded
    trainer.train_dataset.read.clear()
    trainer.train()
    return (
        losses,
        {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
        trainer.train_dataset.read,
    )


def ours(trainer, order):
    """Train all weights on the same batches as a sweep would: losses of the epochs, and weights."""
    problem = trainer_problem(trainer)
    n = len(trainer.train_dataset)
    by_epoch = torch.tensor(order).view(-1, n)
    feed = replace(problem.feed, order=lambda data, seeds, epoch, size, rows: by_epoch[epoch].expand(len(seeds), -1))
    whole = tuple(
        name for name, module in trainer.model.named_modules() if any(True for _ in module.parameters(recurse=False))
    )
    data = problem.data["train"]
    setting = replace(problem.training, lr=trainer.args.learning_rate)
    loop = PackTraining(
        trainer.model,
        [(Member(name="full", modules_to_save=whole), setting)],
        data,
        data,
        problem.loss,
        problem.loss,
        feed=feed,
    )
    points, outcome = [], None
    while not loop.done:
        epoch = loop.advance()
        points += epoch.points
        outcome = epoch.ended[0] if epoch.ended else None
    return [point.train_loss for point in points], outcome.state


def check_equal(make):
    """A trainer's own run against the same in a pack of one."""
    losses, weights, read = theirs(make())
    trainer = make()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    means, state = ours(trainer, read)
    sizes = np.array([4, 4, 4, 2] * 2)
    expected = (np.array(losses) * sizes).reshape(2, 4).sum(1) / 14
    assert np.allclose(means, expected, rtol=1e-5)
    assert max(float((weights[name] - before[name]).abs().max()) for name in before) > 1e-3
    for name, value in state.items():
        assert torch.allclose(value, weights[name], atol=2e-5), name


def test_a_trainer_of_transformers_has_the_same_losses_and_weights(tmp_path):
    check_equal(lambda: make_trainer(tmp_path, weight_decay=0.0))


def test_a_trainer_of_trl_has_the_same_losses_and_weights(tmp_path):
    check_equal(lambda: make_sft(tmp_path))


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


FEW = {"plan": "grid", "seeds": 1, "lrs": 1e-3, "progress": "quiet"}


def test_a_sweep_of_a_trainer_of_transformers(tmp_path):
    evaluated = Recorded([{"input_ids": ids, "labels": label} for ids, label in sequences(8, seed=1)])
    trainer = make_trainer(tmp_path, more={"compute_metrics": accuracy, "eval_dataset": evaluated})
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    found = rankwise.sweep_trainer(trainer, [2], **FEW)
    assert [c.name for c in found.results.configurations] == ["r2", "head", "full"]
    assert (found.results.metric.name, found.results.metric.higher_is_better) == ("accuracy", True)
    assert found.results.data.validation.n == 8
    assert any("cross-entropy of the label, equal to the trainer's" in note for note in found.results.notes)
    assert all(torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters())
    assert "classifier.weight" in found.state("r2-lr0.001-s0")


def test_a_sweep_of_a_trainer_of_trl(tmp_path):
    found = rankwise.sweep_trainer(make_sft(tmp_path), [1], **FEW)
    assert [c.name for c in found.results.configurations] == ["r1", "full"]
    assert found.results.metric.name == "loss"
    assert any("cross-entropy of the next token" in note for note in found.results.notes)


class Shouting(TrainerCallback):
    pass


class Weighted(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 2 * super().compute_loss(model, inputs)


class Stepping(Trainer):
    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)


def masked(examples):
    batch = pad(examples)
    return {**batch, "input_ids": torch.randint_like(batch["input_ids"], 3, VOCABULARY)}


def flattened(examples):
    return {key: value.flatten().unsqueeze(0) for key, value in pad(examples).items()}


REFUSED = {
    "max_steps": ({"max_steps": 5}, r"max_steps is 5, .*set num_train_epochs"),
    "fractions": ({"num_train_epochs": 0.5}, r"num_train_epochs is 0.5"),
    "schedule": ({"lr_scheduler_type": "polynomial"}, r"lr_scheduler_type is polynomial"),
    "optimiser": ({"optim": "adafactor"}, r"optim is adafactor, .*a sweep has AdamW"),
    "smoothing": ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor is 0.1, .*leave it out"),
    "steps": (
        {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
        r'eval_strategy="steps"; a sweep looks after every epoch',
    ),
    "half precision": ({"bf16_full_eval": True}, r"bf16_full_eval is True, .*evaluates as it trains"),
    "order": ({"train_sampling_strategy": "group_by_length"}, r"train_sampling_strategy is group_by_length"),
    "best": (
        {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
        | {"metric_for_best_model": "accuracy"},
        r"keeps the weights with the best accuracy",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_a_sweep_can_not_follow_are_refused_by_name(tmp_path, name):
    arguments, message = REFUSED[name]
    more = {"eval_dataset": Recorded([]), "compute_metrics": accuracy} if name in ("best", "steps") else {}
    trainer = make_trainer(tmp_path, more=more, **arguments)
    trainer.eval_dataset = None
    with pytest.raises(ConfigError, match=message):
        rankwise.sweep_trainer(trainer, [1], **FEW)


def test_every_argument_is_taken_over_ruled_noted_or_without_effect():
    """A new one of transformers or TRL is refused until someone has looked at it."""
    trl = pytest.importorskip("trl")
    known = [*TAKEN_OVER, *NOTED, *WITHOUT_EFFECT, *(rule.argument for rule in RULES)]
    assert len(known) == len({*known})
    for cls in (TrainingArguments, trl.SFTConfig):
        assert {field.name for field in dataclasses.fields(cls)} <= {*known}


@dataclasses.dataclass
class Mine(TrainingArguments):
    colour: str = "red"


def test_an_unknown_argument_is_refused_by_name_and_one_of_the_user_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "WITHOUT_EFFECT", WITHOUT_EFFECT - {"logging_steps"})
    trainer = make_trainer(tmp_path)
    with pytest.raises(ConfigError, match=r"logging_steps is 1, an argument that sweep_trainer doesn't know"):
        check_trainer(trainer)
    trainer.args = Mine(output_dir=str(tmp_path), use_cpu=True, report_to="none", colour="blue")
    check_trainer(trainer)


def test_what_has_no_effect_is_noted(tmp_path):
    notes = training_of(make_trainer(tmp_path, seed=7, gradient_checkpointing=True), 8)[1]
    assert "The trainer's seed=7 has no effect: the seeds are the sweep's; give them as seeds." in notes
    assert len(notes) == 2
    assert training_of(make_trainer(tmp_path), 8)[1] == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"cls": Weighted}, r"The loss of Weighted is .* none that a sweep knows"),
        ({"cls": Stepping}, r"Stepping has its own training_step"),
        ({"more": {"callbacks": [Shouting]}}, r"callback Shouting, .*remove_callback\(Shouting\)"),
        ({"collator": masked}, r"collator .* gives other values when it is called again"),
        ({"collator": flattened}, r'makes "input_ids" of shape \(1, \d+\) from 4 examples'),
    ],
)
def test_trainers_that_a_sweep_can_not_follow_are_refused(tmp_path, how, message):
    with pytest.raises(RankwiseError, match=message):
        rankwise.sweep_trainer(make_trainer(tmp_path, **how), [1], **FEW)


def test_a_model_with_adapters_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    trainer = make_trainer(tmp_path)
    trainer.model = get_peft_model(trainer.model, LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(ConfigError, match="has adapters of peft; give the trainer the base"):
        rankwise.sweep_trainer(trainer, [1], **FEW)


def f1(prediction):
    said = prediction.predictions.argmax(-1)
    hits = ((said == 1) & (prediction.label_ids == 1)).sum()
    return {"f1": 2 * hits / max(1, (said == 1).sum() + (prediction.label_ids == 1).sum()), **accuracy(prediction)}


def test_a_metric_that_is_no_mean_over_examples_is_refused_and_another_can_be_named(tmp_path):
    trainer = make_trainer(tmp_path, more={"compute_metrics": f1})
    with pytest.raises(ConfigError, match='compute_metrics gives f1, accuracy; say which decides: metric="f1"'):
        trainer_problem(trainer)
    with pytest.raises(ConfigError, match="it is no mean over examples"):
        trainer_problem(trainer, metric="f1")
    assert trainer_problem(trainer, metric="accuracy").metric_name == "accuracy"
    assert trainer_problem(trainer, metric="loss").metric is None


def test_what_is_no_trainer_is_refused():
    with pytest.raises(ConfigError, match="Linear has no model; sweep_trainer takes a Trainer"):
        rankwise.sweep_trainer(nn.Linear(2, 2), [1])
