"""`rankwise.sweep` over models and data of one's own."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rankwise
from rankwise import LoRAConfig, Training
from rankwise.errors import ConfigError, DataError, PackError
from rankwise.pack.member import Member
from rankwise.pack.model import packed_model
from rankwise.results import plain
from rankwise.sweeps.candidates.grid import Candidate, modules_with_parameters
from rankwise.sweeps.problem import DEFAULT_DATA, Problem, Run, Splits
from rankwise.sweeps.run.run import run_sweep
from rankwise.sweeps.run.stage import Decisions, Search
from rankwise.sweeps.run.stages import Stages
from rankwise.train.data.loaders import cut_off, in_memory
from rankwise.train.events import Observers
from rankwise.train.outcome import EpochPoint
from rounding import alike
from small_sweep import accuracy, loss, small_model, some_data
from trained_pack import train_pack

QUICK = Training(lr=1.0, batch_size=8, epochs=3)
TRAIN, VALIDATION, TEST = some_data(64, 0), some_data(40, 1), some_data(40, 2)
GIVEN: dict[str, Any] = {
    "train": TRAIN,
    "validation": VALIDATION,
    "test": TEST,
    "loss": loss,
    "metric": accuracy,
    "metric_name": "accuracy",
    "training": QUICK,
    "lrs": (0.01, 0.03),
    "plan": "grid",
    "seeds": 1,
    "progress": "quiet",
}


def run(configs: Any = (1, 4), model: nn.Module | None = None, **more: Any) -> rankwise.Sweep:
    return rankwise.sweep(model or small_model(), configs, **{**GIVEN, **more})


@pytest.mark.draws
def test_ranks_seeds_and_baseline(tmp_path: Path) -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = run(model=model, seeds=2, out=tmp_path / "out")
    names = [c["name"] for c in found.results["configurations"]]
    assert names == ["r1", "r4", "full"]
    assert {run["lr"] for run in found.results["runs"] if run["method"] == "full"} == {0.001, 0.003}
    assert "r = 4" in str(found)
    assert "accuracy" in found.table()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (tmp_path / "out" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["answer"] == plain(found.answer)

    name = "r4-lr0.03-s1"
    outputs = {}
    for way in ("put on", "loaded"):
        if way == "put on":
            found.put_on(model, name)
        else:
            rankwise.load_adapter(model, tmp_path / "out" / "adapters" / name)
        model.eval()
        with torch.no_grad():
            outputs[way] = model(TEST[0])
        rankwise.eject(model)
    assert alike(outputs["put on"], outputs["loaded"])
    measured = next(run["metric"] for run in found.results["runs"] if run["name"] == name)
    assert accuracy(outputs["loaded"], TEST).mean().item() == pytest.approx(measured)


def test_every_pass_of_known_modules_is_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    chains: list[object] = []
    find = packed_model.chain_of
    monkeypatch.setattr(packed_model, "chain_of", lambda *given: chains.append(find(*given)) or chains[-1])
    run(baseline=False)
    assert chains
    assert None not in chains


def test_data_of_every_form_gives_the_same() -> None:
    expected = run(baseline=False).results["configurations"]

    def of_mapping(outputs: Tensor, batch: Any) -> Tensor:
        return F.nll_loss(outputs, batch["labels"], reduction="none")

    def as_mapping(data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"input": data[0], "labels": data[1]}

    forms: list[dict[str, Any]] = [
        {part: TensorDataset(*GIVEN[part]) for part in ("train", "validation", "test")},
        {part: DataLoader(TensorDataset(*GIVEN[part]), batch_size=7) for part in ("train", "validation", "test")},
        {part: [t.numpy() for t in GIVEN[part]] for part in ("train", "validation", "test")},
        {part: [(x, int(y)) for x, y in zip(*GIVEN[part], strict=True)] for part in ("train", "validation", "test")},
        {
            **{part: as_mapping(GIVEN[part]) for part in ("train", "validation", "test")},
            "loss": of_mapping,
            "metric": lambda outputs, batch: (outputs.argmax(-1) == batch["labels"]).float(),
        },
    ]
    for form in forms:
        assert run(baseline=False, **form).results["configurations"] == expected


def test_a_head_of_its_own_each(tmp_path: Path) -> None:
    found = run({"small": LoRAConfig(r=2, target_modules="0")}, head=["2"], baseline=[0.003], out=tmp_path / "out")
    by_name = {c["name"]: c for c in found.results["configurations"]}
    assert list(by_name) == ["small", "head", "full"]
    assert by_name["head"]["trainable_parameters"] == 8 * 3 + 3
    assert by_name["small"]["trainable_parameters"] == 2 * (6 + 8) + 8 * 3 + 3
    model = small_model()
    rankwise.load_adapter(model, tmp_path / "out" / "adapters" / "small-lr0.03-s0")
    with torch.no_grad():
        got = accuracy(model.eval()(TEST[0]), TEST).mean().item()
    assert got == pytest.approx(next(r["metric"] for r in found.results["runs"] if r["name"] == "small-lr0.03-s0"))


def test_a_saved_adapter_as_a_start(tmp_path: Path) -> None:
    first = run([2], baseline=False, out=tmp_path / "first", lrs=[0.03])
    folder = tmp_path / "first" / "adapters" / "r2-lr0.03-s0"
    again = run([2, folder], baseline=False, lrs=[1e-8])
    by_name = {run["configuration"]: run for run in again.results["runs"]}
    name = f"from-{folder.name}"
    assert by_name[name]["metric"] == pytest.approx(first.results["runs"][0]["metric"], abs=0.03)
    for key, value in first.state("r2-lr0.03-s0").items():
        torch.testing.assert_close(again.state(f"{name}-lr1e-08-s0")[key], value, atol=1e-5, rtol=0)


def test_a_loss_is_the_metric_where_none_is_given() -> None:
    found = run(metric=None, metric_name=None, baseline=False)
    assert dict(found.results.metric) == {"name": "loss", "higher_is_better": False}
    assert found.answer is not None


def test_the_grid_goes_on_where_the_best_rate_lies_at_its_edge() -> None:
    found = run([4], baseline=False, lrs=(1e-4, 1e-3), widen=True)
    rates = [run["lr"] for run in found.results["runs"]]
    assert rates[:3] == [1e-4, 1e-3, 1e-2]
    assert len(rates) <= 5
    assert found.results["complete"]


def test_going_on_and_nothing_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(baseline=False).results["configurations"]
    from rankwise.train import loop

    by_step, calls = loop.PackTraining.by_step, []

    def interrupted(self: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return by_step(self)

    monkeypatch.setattr(loop.PackTraining, "by_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(baseline=False, out=tmp_path / "out", every=rankwise.train.checkpoints.CheckpointInterval(1, None))
    found = run(baseline=False, out=tmp_path / "out", resume=True)
    assert found.results["configurations"] == expected
    assert not (tmp_path / "out" / "checkpoints").exists()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.fc(x)}


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"configs": []}, ConfigError, "The grid is empty"),
        ({"configs": [2], "seeds": [], "baseline": False}, ConfigError, "The grid is empty"),
        ({"loss": lambda o, b: o}, PackError, "The loss returned shape"),
        ({"metric": lambda o, b: o.sum(-1) * torch.nan}, ConfigError, "The accuracy is not finite on the base"),
        ({"train": (TRAIN[0], TRAIN[1][:9])}, DataError, r"training data have \[9, 64\] rows"),
        (
            {"train": DataLoader(TensorDataset(*TRAIN), shuffle=True, batch_size=8)},
            DataError,
            "gives other rows, or another order, when it is read again",
        ),
        ({"train": "data.csv"}, DataError, "A batch of the training data is a str"),
        ({"train": 3}, DataError, "The training data is a int; give tensors"),
        ({"model": small_model().half()}, ConfigError, "The model is in float16 on the CPU"),
        ({"model": nn.ReLU()}, ConfigError, "The ReLU has no parameters"),
        ({"model": Odd()}, PackError, "The model returns a dict; give call="),
        ({"configs": {"a": LoRAConfig(target_modules="nope")}}, rankwise.errors.TargetError, "nope"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_refused_in_a_line(more: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        run(**{"configs": [1], **more})
    assert "\n" not in str(caught.value)


def test_modules_that_share_their_weights_are_trained_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.LayerNorm(3)})
    model["b"].weight, model["b"].bias = model["a"].weight, model["a"].bias
    assert modules_with_parameters(model) == ("a", "c")


def test_rates_are_looked_for_on_less_data() -> None:
    """The runs that count are those of the rates that did best on the small data, at all seeds."""
    splits = Splits(TRAIN, VALIDATION, TEST)
    small = Splits(some_data(24, 0), VALIDATION, TEST)
    problem = Problem({DEFAULT_DATA: splits, "search": small}, loss, accuracy)
    candidates = [
        Candidate(name=f"r{r}", label="", method="lora", training=QUICK, lrs=(1e-4, 1e-2, 3e-2), lora=LoRAConfig(r=r))
        for r in (1, 4)
    ]
    stages = Stages(
        model=small_model(),
        problem=problem,
        candidates=candidates,
        seeds=(0, 1),
        observers=Observers(),
        search=Search(data="search", rungs=(1,)),
    )
    found = stages.run()
    ended = [c for c in found.searched if c["status"] == "finished"]
    best: dict[str, float] = {}
    for c in sorted(ended, key=lambda c: (c["validation_metric"], -c["lr"])):
        best[c["configuration"]] = c["lr"]
    assert {run.name for run in found.swept.runs} == {f"{c}-lr{lr:g}-s{s}" for c, lr in best.items() for s in (0, 1)}
    assert {c["status"] for c in found.searched} == {"finished", "pruned"}
    assert found.edges == {name: lr != 1e-2 for name, lr in best.items()}
    alone = run_sweep(small_model(), found.swept.runs, problem, Observers())
    for run in found.swept.runs:
        assert (found.swept.scores[run.name].test == alone.scores[run.name].test).all()


def test_the_reference_is_tried_one_rate_further() -> None:
    """Both do best at the highest rate given; that of full fine-tuning alone goes on, by the step that the grid has."""
    problem = Problem({DEFAULT_DATA: Splits(TRAIN, VALIDATION, TEST)}, loss, loss, higher_is_better=False)
    lora = Candidate(name="r1", label="", method="lora", training=QUICK, lrs=(1e-4, 1e-3), lora=LoRAConfig(r=1))
    full = Candidate(name="full", label="", method="full", training=QUICK, lrs=(1e-5, 1e-4), modules_to_save=("0", "2"))
    stages = Stages(model=small_model(), problem=problem, candidates=(lora, full), seeds=(0,), observers=Observers())
    searching = Decisions(stages.search_rates((lora, full), 7, ("full",)))
    for phase in searching:
        searching.take(run_sweep(stages.model, phase.runs, problem, Observers()))
    rates, edges, told = searching.result
    tried = [(one["configuration"], one["lr"]) for one in told]
    assert sorted(tried) == [("full", 1e-5), ("full", 1e-4), ("full", 1e-3), ("r1", 1e-4), ("r1", 1e-3)]
    assert rates == {"r1": 1e-3, "full": 1e-3}
    assert edges == {"r1": True, "full": True}, "the next may be better still"


def test_the_search_has_the_schedule_of_the_runs_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it comes: 3 epochs of 24 rows are 9 of the 24 steps that 64 rows take."""
    problem = Problem(
        {DEFAULT_DATA: Splits(TRAIN, VALIDATION, TEST), "search": Splits(some_data(24, 0), VALIDATION, TEST)},
        loss,
        accuracy,
    )
    training = replace(QUICK, schedule="cosine")
    candidate = Candidate(name="r1", label="", method="lora", training=training, lrs=(1e-3, 1e-2), lora=LoRAConfig(r=1))
    trained: list[Run] = []

    def noted(model: nn.Module, runs: Sequence[Run], *rest: Any, **named: Any) -> Any:
        trained.extend(runs)
        return run_sweep(model, runs, *rest, **named)

    monkeypatch.setattr("rankwise.sweeps.run.stages.run_sweep", noted)
    search = Search(data="search")
    Stages(
        model=small_model(),
        problem=problem,
        candidates=[candidate],
        seeds=(0,),
        observers=Observers(),
        search=search,
        widen=True,
    ).run()
    searching = [run for run in trained if run.data == "search"]
    assert len(searching) > 2, "widened too"
    assert {run.training.horizon for run in searching} == {24}
    (counts,) = [run for run in trained if run.data == DEFAULT_DATA]
    assert counts.training.horizon is None


def test_a_schedule_may_be_longer_than_the_run() -> None:
    rates: dict[int | None, list[float]] = {}
    for horizon in (None, 24):
        points: list[EpochPoint] = []
        member = Member(name="a", lora=LoRAConfig(r=1))
        training = Training(lr=1.0, batch_size=8, epochs=3, schedule="cosine", horizon=horizon)
        list(
            train_pack(
                small_model(),
                [(member, training)],
                some_data(24, 0),
                VALIDATION,
                loss,
                accuracy,
                on_epoch=points.extend,
            )
        )
        rates[horizon] = [point.lr for point in points]
    # The rate of an epoch's last step: the 3rd, 6th and 9th.
    assert rates[None] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 9)) for step in (2, 5, 8)])
    assert rates[24] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 24)) for step in (2, 5, 8)])


def test_a_metric_that_is_no_number_costs_its_own_figures_only(tmp_path: Path) -> None:
    def exponential(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
        return loss(outputs, batch).mul(20).exp()

    lrs, out = (0.003, 3.0), tmp_path / "out"
    found = run(lrs=lrs, baseline=False, metric=exponential, higher_is_better=False, out=out)
    values = {run["name"]: run["validation_metric"] for run in found.results["runs"]}
    assert values["r1-lr0.003-s0"] is not None
    assert values["r1-lr3-s0"] is None
    assert {c["lr"] for c in found.results["configurations"]} == {0.003}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["answer"] == plain(found.answer)


@pytest.mark.draws
def test_test_data_on_which_the_metric_is_no_number(tmp_path: Path) -> None:
    """Read last: all that was trained is there all the same."""
    far = (TEST[0] * torch.where(torch.arange(40) == 7, 1e3, 1.0).unsqueeze(1), TEST[1])

    def infinite(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
        far_and_trained = (batch[0].abs().amax(-1) > 50) & (outputs.abs().amax(-1) != before)
        return torch.where(far_and_trained, torch.inf, accuracy(outputs, batch))

    model = small_model()
    with torch.no_grad():
        before = float(model(far[0])[7].abs().max())
    found = run((1,), model=model, test=far, metric=infinite, seeds=2, out=tmp_path / "out")
    r1, full = found.results["configurations"]
    assert (r1["mean"], r1["interval"], full["mean"]) == (None, None, None)
    assert r1["validation_mean"] is not None
    assert any(
        "r1 has no figures on test data: 2 of its 80 values are not finite." in n for n in found.results["notes"]
    )
    assert found.answer is not None
    assert (tmp_path / "out" / "report.html").exists()
    assert list((tmp_path / "out" / "adapters").glob("r1-*"))


def test_what_a_pack_says_of_itself_is_told() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(6, 1, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.unsqueeze(1)
            return self.head(self.attention(x, x, x, need_weights=False)[0][:, 0]).log_softmax(-1)

    found = run({"d": LoRAConfig(r=1, dropout=0.5)}, model=Attends(), baseline=False)
    assert any(note.startswith("Dropout doesn't act on attention.in_proj_weight") for note in found.results["notes"])
    assert sum("run one after another" in note for note in found.results["notes"]) == 1


def test_modes_are_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.LogSoftmax(-1)).train()
    model[1].eval()
    run((1,), model=model, baseline=False)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


def test_memory_that_runs_out_on_the_base_is_met_with_fewer_rows() -> None:
    class Large(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training and len(x) > 50:
                raise torch.OutOfMemoryError("no room for so many rows")
            return super().forward(x)

    many = some_data(200, 1)
    found = run((1,), model=Large(*small_model()), validation=many, test=many, baseline=False)
    assert found.results["base"]["metric"] == run((1,), validation=many, test=many).results["base"]["metric"]


def test_one_row_has_no_interval() -> None:
    for what in ("validation", "test"):
        with pytest.raises(DataError, match=f"The {what} data has 1 row; give two or more"):
            run((1,), **{what: some_data(1, 1)})
    assert run((1,), train=some_data(14, 1), validation=None, test=None).results["data"]["test"]["n"] == 2


@pytest.mark.parametrize("cache", [False, True])
def test_each_seed_validates_on_rows_of_its_own(tmp_path: Path, cache: bool) -> None:
    """64 rows: 6 are cut off for test, and 6 of the other 58 by each seed."""
    upper = {"only-2": LoRAConfig(r=2, target_modules="2")} if cache else (1,)
    given: dict[str, Any] = {"validation": None, "test": None, "rotate": True, "seeds": 3}
    given |= {"lrs": (0.03,), "plan": "grid"}
    found = run(upper, cache=cache, out=tmp_path / "out", **given)
    arrays = np.load(tmp_path / "out" / "predictions.npz")
    names = [one["name"] for one in found.results["runs"]]
    rows = {one["seed"]: {*arrays[f"rows/{one['name']}"].tolist()} for one in found.results["runs"]}
    assert len(names) == 6
    assert [len(cut) for cut in rows.values()] == [6, 6, 6]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    # No row of the pool is one of test.
    train, _ = cut_off(in_memory(TRAIN, "training", torch.device("cpu")), 0.1, "test")
    own, cut = cut_off(train, 0.1, "validation")
    pool = [torch.cat(parts) for parts in zip(own, cut, strict=True)]
    for name in names:
        scores = found.swept.scores[name]
        state = found.state(name)
        model = small_model()
        scale = 16.0 if "only" in name else 32.0
        if "full" in name:
            model.load_state_dict(state)
        for layer in {key[:-2] for key in state if key.endswith(".A")}:
            with torch.no_grad():
                model.get_submodule(layer).weight += scale * state[f"{layer}.B"] @ state[f"{layer}.A"]
        x, y = (t[scores.rows] for t in pool)
        with torch.no_grad():
            assert accuracy(model.eval()(x), (x, y)).tolist() == scores.validation.tolist()
        assert arrays[f"deciding/{name}"].tolist() == found.swept.score(found._run(name)[0]).validation.tolist()


def test_a_validation_set_that_is_given_is_not_cut_anew() -> None:
    with pytest.raises(ConfigError, match="rotate is True and the validation data is fixed") as caught:
        run(rotate=True)
    assert "\n" not in str(caught.value)
