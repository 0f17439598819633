"""Sweeps over variants and initialisations: as each alone, told apart, and refused in one line."""

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import rankwise
from rankwise.adapter_files import load_adapter
from rankwise.errors import ConfigError, PackError
from rankwise.lora import adapter_tensors
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.report.points import scene
from rankwise.report.table import terminal_table
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.ladders import ladders_of
from rankwise.train.settings import Training

KINDS = {"variant": ["lora", "dora"], "init": ["kaiming", "pissa"]}


def encoder() -> nn.Module:
    """As MiniLM, but small, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        return BertForSequenceClassification(BertConfig(vocab_size=30, **sizes, num_labels=3)).double().eval()


def texts(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(0, 30, (rows, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(2, 7, (rows, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids[:, 0] % 3}


def loss(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")


def swept(configs: list[LoRAConfig], **more) -> rankwise.Sweep:
    given = {
        "train": texts(24), "validation": texts(9), "test": texts(10), "loss": loss, "lrs": 0.01, "plan": "grid",
        "seeds": [1], "head": ["classifier"], "training": Training(epochs=1, batch_size=8), "progress": "quiet",
        "baseline": False,
    }  # fmt: skip
    return rankwise.sweep(encoder(), configs, **{**given, **more})


def states_of(found: rankwise.Sweep) -> dict[str, dict[str, Tensor]]:
    return {run.configuration: found.swept.outcomes[run.name].state for run in found.swept.runs if run.method == "lora"}


CONFIGS = LoRAConfig.grid(**KINDS, r=[2, 4, 8], target_modules=["query", "intermediate.dense"])
NAMES = [f"r{r}{kind}" for kind in ("", " pissa", " dora", " pissa dora") for r in (2, 4, 8)]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """2 variants, 2 initialisations and 3 ranks in packs."""
    return swept(CONFIGS, out=tmp_path_factory.mktemp("twelve") / "run")


QUICK = ("r2 pissa", "r8 pissa dora")
"""Those that `make test` looks at too."""


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(name, config, marks=[] if name in QUICK else pytest.mark.slow, id=name)
        for name, config in zip(NAMES, CONFIGS, strict=True)
    ],
)
def test_each_of_a_sweep_is_itself_alone(twelve, name, config):
    together = states_of(twelve)
    assert list(together) == NAMES
    (alone,) = states_of(swept([config])).values()
    assert together[name].keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(together[name][key], value, rtol=0, atol=1e-10)


def test_a_table_and_a_figure_show_which_is_which(twelve):
    found = twelve
    screen = Console(file=io.StringIO(), width=100)
    screen.print(terminal_table(found.results, 100))
    lines = screen.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines if "pissa dora" in line] == [f"r = {r} pissa dora" for r in (2, 4, 8)]
    lines = scene(found.results, relative=False).lines
    assert [(line[0].kind, len(line)) for line in lines] == [("", 3), ("pissa", 3), ("dora", 3), ("pissa dora", 3)]
    assert len({line[0].colour for line in lines}) == 4
    # The folder of a run is its function.
    run = next(run for run in found.results.runs if run.configuration == "r4 pissa")
    ours, read, batch = encoder(), encoder(), {key: t for key, t in texts(10).items() if key != "labels"}
    found.put_on(ours, run.name)
    load_adapter(read, found.directory / run.adapter)
    torch.testing.assert_close(read(**batch).logits, ours(**batch).logits, rtol=0, atol=1e-6)


def test_starts_from_data_are_each_seeds_own_and_reach_the_files(tmp_path):
    configs = LoRAConfig.grid(init=["eva", "lora-ga"], r=4, target_modules=["query"])
    found = swept(configs, seeds=[1, 2], out=tmp_path / "run")
    again = swept(configs, seeds=[1])
    path = "bert.encoder.layer.0.attention.self.query.A"
    starts = {run.name: run.start[path] for run in found.swept.runs if run.method == "lora"}
    assert len(starts) == 4
    for run in again.swept.runs:
        if run.method == "lora":
            assert torch.equal(run.start[path], starts[run.name])
            assert not torch.equal(run.start[path], starts[run.name.replace("s1", "s2")])
            for key, value in again.state(run.name).items():
                torch.testing.assert_close(value, found.state(run.name)[key], rtol=0, atol=1e-10)
    run = next(run for run in found.results.runs if run.configuration == "r4 lora-ga")
    ours, read, batch = encoder(), encoder(), {key: t for key, t in texts(10).items() if key != "labels"}
    found.put_on(ours, run.name)
    load_adapter(read, tmp_path / "run" / run.adapter)
    torch.testing.assert_close(read(**batch).logits, ours(**batch).logits, rtol=0, atol=1e-6)
    assert not torch.equal(ours(**batch).logits, encoder()(**batch).logits)


def test_lora_plus_is_a_rate_of_its_own():
    """As torch's optimiser with two groups."""
    layer = nn.Sequential(nn.Linear(5, 4)).double()
    batch = (torch.ones(3, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.long))

    def own_loss(outputs: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(outputs, rows[1], reduction="none")

    pack = Pack(layer, [Member(name=str(k), lora=LoRAConfig(r=2), lr_ratio=float(k)) for k in (1, 16)], own_loss)
    start = pack.states()
    with pack.attached(batch, training=True):
        for _ in range(3):
            lr = torch.full((2,), 1e-3, dtype=torch.float64)
            pack.step(tuple(t.unsqueeze(0) for t in batch), lr, None, None)
    for k in (1, 16):
        model = nn.Sequential(nn.Linear(5, 4)).double()
        model.load_state_dict(layer.state_dict())
        rankwise.inject(model, LoRAConfig(r=2))
        ((A, B),) = adapter_tensors(model).values()
        optimiser = torch.optim.AdamW([{"params": [A]}, {"params": [B], "lr": k * 1e-3}], lr=1e-3, weight_decay=0.0)
        for _ in range(3):
            optimiser.zero_grad()
            own_loss(model(batch[0]), batch).mean().backward()
            optimiser.step()
        torch.testing.assert_close(pack.states()[str(k)]["0.A"], A.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(pack.states()[str(k)]["0.B"], B.detach(), rtol=0, atol=1e-10)
    assert not torch.equal(start["16"]["0.A"], pack.states()["16"]["0.A"])


def test_kinds_have_ladders_of_their_own():
    configs = LoRAConfig.grid(alpha=[16, 32], init=["kaiming", "orthogonal"], r=[2, 4])
    names = ["a2", "a4", "b2", "b4", "c2", "c4", "d2", "d4"]
    sized = [
        Candidate(name=name, label=name, method="lora", training=Training(), lrs=(1.0,), lora=config)
        for name, config in zip(names, configs, strict=True)
    ]
    assert [ladder.names for ladder in ladders_of(sized)] == [("a2", "a4"), ("b2", "b4"), ("c2", "c4"), ("d2", "d4")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "pisa"}, 'init "pisa" is not known.*Did you mean "pissa"'),
        ({"init": "orthogonal", "r": 3}, "needs an even rank, and r is 3"),
        ({"init": "pissa", "variant": "vera"}, 'variant "vera" has a random A and B'),
        ({"init": "pissa", "alpha": -1}, "alpha is -1"),
        ({"init": "pissa", "slices": {"q": ["0/3"]}}, "slices are set"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)


def test_a_sweep_that_cannot_start_says_so_before_training():
    with pytest.raises(PackError, match=r"in few bits and what quantising took from it; quantise the model first"):
        swept([LoRAConfig(r=2, init="loftq", target_modules=["query"])])
