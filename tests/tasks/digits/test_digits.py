"""The digits experiment on its embedded data, with few epochs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rankwise import disabled, load_adapter, merge
from rankwise.errors import ConfigError, DataError
from rankwise.experiment import run_experiment
from rankwise.results import parsed, plain
from rankwise.sweeps.candidates.grid import runs_of
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.run.location import RunLocation
from rankwise.tasks.digits import digits
from rankwise.tasks.digits.digits import (
    BASELINE_LRS,
    DIGITS_LRS,
    MEAN,
    NEW,
    OLD,
    STD,
    digits_candidates,
    make_model,
    make_problem,
    pretrain,
    protocol_of,
    select_digits,
)
from rankwise.tasks.digits.mnist import Split, load_digits_data
from rankwise.tasks.digits.run import make_digits
from rankwise.tasks.options import DigitsOptions
from rankwise.train.events import Observers

CPU = torch.device("cpu")


def run(out: Path, base: dict[str, torch.Tensor] | None = None, **changed: Any) -> dict[str, Any]:
    """The results of a run, over a base that was trained before or over a new one: most of the time goes there."""
    given = {"ranks": (1, 4), "seeds": (0, 3), "epochs": 2, "lr": (3e-3,), "baseline_lr": (1e-3,), **changed}
    given = {"deciding": Deciding(plan="grid"), **given}
    with Observers() as shown:
        place = RunLocation(directory=out, config="digits: {}\n", command="rankwise", resume_command="rankwise digits")
        options = DigitsOptions(**given)
        results, _, _ = run_experiment(lambda observers, _: make_digits(options, observers, base), place, shown)
    return plain(results)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "right"
    run(out)
    return out


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, Any]:
    return json.loads((place / "results.json").read_text())


@pytest.fixture(scope="module")
def base(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "base" / "model.safetensors")


def saved_base(base: dict[str, torch.Tensor]) -> torch.nn.Sequential:
    model = make_model()
    model.load_state_dict(base)
    return model.eval()


def test_sizes(results: dict[str, Any]) -> None:
    parsed(results)
    assert results["base"]["parameters"] == 54_725
    found = {run["configuration"]: run["trainable_parameters"] for run in results["runs"]}
    assert found == {"r1": 1045, "r4": 4 * 1045, "full": 54_725}
    runs = runs_of(digits_candidates(DigitsOptions()), range(5))
    assert len(runs) == 7 * len(DIGITS_LRS) * 5 + len(BASELINE_LRS) * 5
    assert len({run.name for run in runs}) == len(runs)


def test_the_file_has_the_keys_that_it_had_before_it_had_types(results: dict[str, Any]) -> None:
    golden = json.loads((Path(__file__).parents[2] / "results" / "golden" / "digits_grid.json").read_text())
    assert [key for key in results if key != "compressed"] == [*golden]
    for part in ("versions", "data", "plan", "grid", "metric", "base", "relative_to"):
        assert [*results[part]] == [*golden[part]], part
    assert [*results["data"]["test"]] == [*golden["data"]["test"]]
    for part in ("runs", "configurations"):
        assert {tuple(one) for one in results[part]} == {tuple(one) for one in golden[part]}, part
    kinds = {tuple(run["config"]) for run in golden["runs"]}
    assert {tuple(run["config"]) for run in results["runs"]} == kinds
    assert [key for key in results["answer"] if key not in ("next", "by_loss")] == [*golden["answer"]]


def test_adapter_off_gives_the_base_and_on_the_recorded_accuracy(
    place: Path, base: dict[str, torch.Tensor], results: dict[str, Any]
) -> None:
    problem = make_problem(load_digits_data(), CPU)
    new, old = problem.splits["new"].test, problem.splits["old"].test
    for run in (run for run in results["runs"] if run["method"] == "lora"):
        model = saved_base(base)
        load_adapter(model, place / run["adapter"])
        with torch.no_grad():
            for data, expected in ((new, run["metric"]), (old, run["other_metrics"]["accuracy_on_0_4"])):
                assert problem.metric(model(data[0]), data).mean().item() == pytest.approx(
                    expected, abs=1.5 / len(old[1])
                )
            with disabled(model):
                assert problem.metric(model(old[0]), old).mean().item() == results["base"]["accuracy_on_0_4"]
            unmerged = model(new[0])
            merge(model)
            torch.testing.assert_close(model(new[0]), unmerged, rtol=1e-4, atol=1e-4)


def test_the_base_knows_the_old_digits_and_says_so(results: dict[str, Any]) -> None:
    assert results["base"]["accuracy_on_0_4"] > 0.9
    assert results["base"]["metric"] < 0.6
    assert any("bit for bit" in note for note in results["notes"])
    assert all(c["mean"] > results["base"]["metric"] for c in results["configurations"])


def test_the_same_data_give_the_same_base(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(options: DigitsOptions) -> digits.Protocol:
        protocol = protocol_of(options)
        return replace(protocol, pretraining=replace(protocol.pretraining, epochs=1))

    monkeypatch.setattr(digits, "protocol_of", short)
    problem = make_problem(load_digits_data(), CPU)
    one, other = (pretrain(problem, DigitsOptions()).state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_same_command_gives_the_same_results(
    tmp_path: Path, base: dict[str, torch.Tensor], results: dict[str, Any]
) -> None:
    again = json.loads(json.dumps(run(tmp_path / "again", base)))
    for found in (again, one := json.loads(json.dumps(results))):
        del found["started"], found["seconds"]
        for each in found["runs"]:
            del each["seconds"]
    assert again == one


def test_published_protocol(tmp_path: Path, base: dict[str, torch.Tensor]) -> None:
    results = run(tmp_path / "published", base, protocol="published", ranks=(2,), seeds=(0,), lr=None, baseline_lr=None)
    parsed(results)
    by_name = {c["name"]: c for c in results["configurations"]}
    assert [*by_name] == ["r2", "full-mistake", "full-notebook", "full"]
    assert results["relative_to"] == {
        "label": "the published baseline",
        "metric": 0.984,
        "trainable_parameters": 54_725,
    }
    assert results["answer"]["reference"] != "full-mistake", "it was trained on other digits"
    assert by_name["full-mistake"]["difference_to_reference"] is None
    lora = next(run for run in results["runs"] if run["method"] == "lora")
    assert (lora["lr"], lora["alpha"], lora["config"]["init"]) == (2e-4, 2.0, "notebook")
    assert [row["r"] for row in results["published"]["rows"]] == [1, 2, 4, 8, 16, 32, 64, None]
    assert "digits 0-4" in results["published"]["note"]
    table = (tmp_path / "published" / "table.md").read_text()
    assert "0.931" in table
    assert "0.984" in table


def test_options_change_the_protocol() -> None:
    options = DigitsOptions(protocol="published", epochs=3, batch_size=16, alpha=(8.0,), lr=(1e-2,))
    changed = protocol_of(options)
    assert (changed.training.epochs, changed.training.batch_size, changed.lrs) == (3, 16, (1e-2,))
    assert {c.lora.alpha for c in digits_candidates(options) if c.lora is not None} == {8.0}
    assert not changed.alpha_is_r
    assert [training.epochs for _, _, _, training, _ in changed.baselines] == [10, 10, 3], (
        "the notebook's stay as they are"
    )


def test_pixels_and_labels() -> None:
    split = Split(np.full((3, 28, 28), 255, np.uint8), np.array([9, 4, 5], np.uint8))
    pixels, labels = select_digits(split, NEW, CPU)
    assert labels.tolist() == [4, 0]
    assert pixels.shape == (2, 784)
    assert pixels[0, 0].item() == pytest.approx((1 - MEAN) / STD)
    with pytest.raises(DataError, match="no image with a label from 5 to 9"):
        select_digits(Split(split.images[1:2], split.labels[1:2]), NEW, CPU)
    assert select_digits(split, OLD, CPU)[1].tolist() == [4]


def test_each_seed_can_cut_its_own_validation_images() -> None:
    """Out of the images 0 to 7999 that show 5 to 9; those of test are never among them."""
    raw = load_digits_data()
    problem = make_problem(raw, CPU)
    new, old = problem.splits["new"], problem.splits["old"]
    assert old.rotation is None, "the base has one validation set"
    assert new.rotation is not None
    images = np.concatenate([raw.train.images, raw.validation.images])
    labels = np.concatenate([raw.train.labels, raw.validation.labels])
    expected = select_digits(Split(images, labels), NEW, CPU)
    assert all(torch.equal(one, other) for one, other in zip(new.rotation.pool, expected, strict=True))
    assert new.rotation.n_validation == len(new.validation[0]) == (raw.validation.labels >= 5).sum()
    tested = {pixels.numpy().tobytes() for pixels in new.test[0]}
    assert not tested & {pixels.numpy().tobytes() for pixels in new.rotation.pool[0]}
    cuts = [{*new.rotation.cut(seed).validation.tolist()} for seed in range(7)]
    assert len(set[int]().union(*cuts)) == 7 * new.rotation.n_validation


def test_every_variant_is_tried_at_every_rank() -> None:
    tried = digits_candidates(DigitsOptions(ranks=(1, 2), variant=("lora", "dora")))
    assert [c.name for c in tried] == ["r1", "r2", "r1 dora", "r2 dora", "full"]
    assert tried[2].label == "r = 1 dora"
    assert [c.lora.variant for c in tried if c.lora is not None] == ["lora", "lora", "dora", "dora"]
    assert [c.name for c in digits_candidates(DigitsOptions(ranks=(1,), variant=("dora",)))] == ["r1", "full"]


def test_precision_is_a_setting_that_earlier_runs_lack() -> None:
    assert "precision" not in DigitsOptions().settings()
    assert DigitsOptions(precision="bf16").settings()["precision"] == "bf16"
    with pytest.raises(ConfigError, match=r'--precision is "bf61"; .* Did you mean "bf16"'):
        make_digits(DigitsOptions(precision="bf61"), Observers(), None)
