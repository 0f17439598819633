"""What lies before the first adapted layer, run once for each row: the same results, and no step runs it again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise import LoRAConfig, Training
from rankwise.errors import ConfigError, OutputError
from rankwise.train.checkpoints import CheckpointInterval
from small_models import KINDS, Batch, Kind, call

UPPER = {
    "gpt2": "re:transformer.h.1.*",
    "llama": "re:model.layers.1.*",
    "bert": "re:bert.encoder.layer.1.*",
    "vit": "re:vit.*layers?.1.*",
    "t5": "re:decoder.block.1.*",
}
"""The upper of two blocks; of T5 the decoder's, so that the whole encoder lies before it."""


def quiet(kind: Kind) -> nn.Module:
    """A model without dropout."""
    torch.manual_seed(0)
    model = kind.make().double()
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def rows(kind: Kind, first: int, batches: int) -> Batch:
    parts = [kind.batch(first + i) for i in range(batches)]
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return {key: t.double() if t.is_floating_point() else t for key, t in joined.items()}


def swept(kind: Kind, model: nn.Module, target: Any, **more: Any) -> rankwise.Sweep:
    config = {name: LoRAConfig(r=r, target_modules=target) for name, r in (("r1", 1), ("r3", 3))}
    data = {"train": rows(kind, 0, 4), "validation": rows(kind, 50, 2), "test": rows(kind, 90, 2)}
    training = Training(lr=1.0, batch_size=6, epochs=2, weights="last")
    settings: dict[str, Any] = {"loss": kind.loss, "call": call, "lrs": (1e-3,), "seeds": 2, "progress": "quiet"}
    # The loss over tokens is no mean of rows.
    settings["metric"] = lambda outputs, batch: outputs.flatten(1).mean(1)
    settings |= {"baseline": False, "plan": "grid"}
    return rankwise.sweep(model, config, training=training, **{**data, **settings, **more})


@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.slow), "llama", "bert", "vit", "t5"])
def test_cached_runs_have_the_updates_and_the_figures_of_others(name: str, tmp_path: Path) -> None:
    kind, seeds = KINDS[name], 2 if name == "bert" else 1
    plain = swept(kind, quiet(kind), UPPER[name], seeds=seeds)
    runs = [run["name"] for run in plain.results["runs"] if run["method"] == "lora"]
    ours = swept(kind, quiet(kind), UPPER[name], cache=tmp_path / "cache" if name == "bert" else True, seeds=seeds)
    for run in runs:
        # All B start at zero, so they are updates themselves.
        for key, value in plain.state(run).items():
            assert torch.allclose(ours.state(run)[key], value, rtol=1e-9, atol=1e-12), (run, key)
    figures = [[c["mean"] for c in found.results["configurations"]] for found in (ours, plain)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-9)
    assert name != "bert" or list((tmp_path / "cache").iterdir()) == []


def test_no_step_runs_the_lower_blocks() -> None:
    kind = KINDS["bert"]
    ran: dict[str, int] = {}
    for cache in (False, True):
        model = quiet(kind)
        lower = model.get_submodule("bert.encoder.layer.0.attention")
        seen: list[int] = []
        lower.register_forward_hook(lambda module, args, output, seen=seen: seen.append(len(args[0])))
        swept(kind, model, UPPER["bert"], cache=cache)
        ran[str(cache)] = sum(seen)
    # Two epochs of two seeds and their validations run it again, against each row once.
    assert ran["True"] < 0.6 * ran["False"]


def test_with_a_head_and_full_fine_tuning_and_a_place_to_go_on_from(tmp_path: Path) -> None:
    kind = KINDS["bert"]
    settings: dict[str, Any] = {"head": ("classifier",), "baseline": (3e-4,), "seeds": 1, "out": tmp_path / "out"}
    ours = swept(kind, quiet(kind), UPPER["bert"], cache=True, **settings)
    plain = swept(kind, quiet(kind), UPPER["bert"], **{**settings, "out": None})
    for one, other in zip(ours.results["runs"], plain.results["runs"], strict=True):
        assert one["validation_metric"] == pytest.approx(other["validation_metric"], rel=1e-7), one["name"]
    assert ours.results["data"] == plain.results["data"]


def test_tensors_and_pairs_as_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(40, 4, dtype=torch.float64)
    pairs = (x, (x.sum(1) > 0).long())

    def classes(outputs: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1], reduction="none")

    def size(outputs: Tensor, batch: Tensor) -> Tensor:
        return (outputs - batch[:, :2]).square().mean(1)

    for data, loss in ((pairs, classes), (x, size)):
        settings: dict[str, Any] = {"train": data, "loss": loss, "lrs": (1e-2,), "progress": "quiet"}
        settings |= {"training": Training(lr=1.0, batch_size=8, epochs=2), "baseline": False}
        settings |= {"plan": "grid", "seeds": 1}
        config = {"top": LoRAConfig(r=2, target_modules="4")}
        ours, plain = (rankwise.sweep(model, config, cache=cache, **settings) for cache in (True, False))
        for key, value in plain.state("top-lr0.01-s0").items():
            assert torch.allclose(ours.state("top-lr0.01-s0")[key], value, rtol=0, atol=1e-12)


class Blocks(nn.Module):
    """A layer, blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.head = nn.Linear(4, 4, bias=False)

    def lifted(self, x: Tensor) -> Tensor:
        return self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lifted(x)
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)


class Tied(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.up.weight


class Drops(Blocks):
    """Noise that no module before the adapted layer draws itself, but that reaches a block there."""

    def lifted(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.up(x), 0.5, self.training)


class Attends(Blocks):
    """A weight below the adapted layer that is read without calling its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def lifted(self, x: Tensor) -> Tensor:
        x = self.up(x).unsqueeze(1)
        return self.attention(x, x, x)[0].squeeze(1)


class Remembers(Blocks):
    """What a module inside leaves behind is read later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4))
        self.first[0].register_forward_hook(lambda module, args, output: setattr(self, "seen", output))

    def lifted(self, x: Tensor) -> Tensor:
        return self.up(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.seen


class Wraps(Blocks):
    """Outputs in an object of which nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapping = Wrapping()

    def lifted(self, x: Tensor) -> Tensor:
        return self.wrapping(x)[1].value


class Wrapping(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, input: Tensor) -> Any:
        x = super().forward(input)
        return x, SimpleNamespace(value=x.tanh())


def top(model: nn.Module, target: str, cache: bool, **more: Any) -> rankwise.Sweep:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return (outputs - batch[1]).square().mean(1)

    settings: dict[str, Any] = {"train": (x, x.sin()), "loss": loss, "lrs": (1e-2,), "baseline": False}
    settings |= {"plan": "grid", "seeds": 1, **more}
    training = Training(lr=1.0, batch_size=8, epochs=2)
    config = {"top": LoRAConfig(r=2, target_modules=target)}
    return rankwise.sweep(model, config, training=training, cache=cache, progress="quiet", **settings)


@pytest.mark.parametrize(
    ("make", "more", "why"),
    [
        (Tied, {"head": ("head",)}, "Nothing can be cached: no module with weights runs before"),
        (Drops, {}, '"blocks.0" draws noise before the first adapted layer, or gives something else'),
        (
            Attends,
            {"head": ("attention.out_proj",)},
            '"attention.out_proj" is adapted or trained in full and never calle',
        ),
        (Remembers, {}, "Nothing can be cached: the model gives something else"),
        (Wraps, {}, "Nothing can be cached: the model gives something else"),
    ],
)
def test_what_would_be_another_result_is_refused(make: type[nn.Module], more: dict[str, Any], why: str) -> None:
    torch.manual_seed(0)
    model = make().double()
    target = "blocks.0" if make is Wraps else "blocks.1"
    top(model, target, cache=False, **more)
    with pytest.raises(ConfigError, match=why):
        top(model, target, cache=True, **more)


def test_what_a_model_writes_to_is_a_copy() -> None:
    torch.manual_seed(0)
    activation = nn.SiLU(inplace=True)
    layers = [nn.Linear(4, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 4)]
    model = nn.Sequential(*layers).double()
    ours, plain = (top(model, "4", cache) for cache in (True, False))
    for key, value in plain.state("top-lr0.01-s0").items():
        assert torch.allclose(ours.state("top-lr0.01-s0")[key], value, rtol=0, atol=1e-12)


def test_what_can_not_be_cached_is_refused(tmp_path: Path) -> None:
    kind = KINDS["bert"]
    with pytest.raises(ConfigError, match="Nothing can be cached: no module with weights runs before"):
        swept(KINDS["mlp"], quiet(KINDS["mlp"]), "all-linear", cache=True)
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="draws noise before the first adapted layer"):
        swept(kind, kind.make().double(), UPPER["bert"], cache=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        swept(kind, quiet(kind), UPPER["bert"], cache=tmp_path / "file")


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    model = nn.Sequential(*layers).double()
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutputError, match=r"The cache can't be written to .*: No space left on device"):
        top(model, "4", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_losses_make_no_copy_of_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankwise.pack import batches

    read: list[object] = []
    pick = batches._LazyMapping.__getitem__

    def heard(self: Any, key: str) -> Any:
        value = pick(self, key)
        if key.startswith("prefix/") and torch.is_grad_enabled():  # in a step
            read.append(value.shape[0])
        return value

    monkeypatch.setattr(batches._LazyMapping, "__getitem__", heard)
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    config = {f"r{r}": LoRAConfig(r=r, target_modules=["4"]) for r in (1, 2, 3)}
    x = torch.randn(40, 4)
    rankwise.sweep(
        nn.Sequential(*layers),
        config,
        train=(x, x),
        loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        training=Training(lr=1.0, batch_size=8, epochs=1),
        lrs=(1e-3,),
        baseline=False,
        plan="grid",
        seeds=1,
        cache=True,
        progress="quiet",
    )
    assert read
    assert max(read) <= 8, "the rows of one batch, once for all adapters"


def test_a_cached_sweep_goes_on_where_what_is_kept_differs_in_its_last_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another number of threads."""
    from rankwise.train import prefix
    from rankwise.train.loop import PackTraining

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    by_step, beside = PackTraining.by_step, prefix.Prefix.beside

    def stopped(self: PackTraining) -> Any:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return by_step(self)

    def moved(*given: Any) -> Any:
        made = beside(*given)
        if given[-1] == "example":
            return made
        return {k: t.nextafter(t + 1) if k.startswith("prefix/") else t for k, t in made.items()}

    with monkeypatch.context() as patch:
        patch.setattr(PackTraining, "by_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            top(model, "2", cache=True, out=tmp_path / "out", every=CheckpointInterval(epochs=1))
    monkeypatch.setattr(prefix.Prefix, "beside", moved)
    assert top(model, "2", cache=True, out=tmp_path / "out", resume=True).results["complete"]
