"""Names of configurations: they tell apart, and make no path of their own."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankwise import LoRAConfig, Training, sweep
from rankwise.errors import ConfigError
from rankwise.sweeps.candidates.naming import check_distinct, check_name, distinct_names, folder_name


@pytest.mark.parametrize("name", ["", " ", "a\0b", "a\nb", "a\x1b[2J", "\ud800", "\u202eabc", "\x7f"])
def test_names_that_cannot_be_shown(name: str) -> None:
    with pytest.raises(ConfigError, match="give it a name of printable characters"):
        check_name(name)


@pytest.mark.parametrize("name", ["x" * 300, "字" * 40])
def test_long_names(name: str) -> None:
    with pytest.raises(ConfigError, match="at most 100 are allowed"):
        check_name(name)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_folder_name_is_one_part_of_a_path(name: str) -> None:
    folder = folder_name(name)
    assert Path("x", folder).name == folder
    assert not set(folder) & set('/\\:*?"<>|\0\n ')
    assert folder[0] not in ".,=+@-"
    assert folder_name(folder) == folder


@pytest.mark.parametrize("names", [("A", "a"), ("é", "e\u0301"), ("a b", "a-b"), ("a/b", "a:b"), ("..", ".")])
def test_names_of_one_folder(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="would be one folder"):
        check_distinct(names)


def test_equal_configurations_are_numbered() -> None:
    assert distinct_names([4, 4, LoRAConfig(r=4), LoRAConfig(r=4, bias="all")]) == ["r4", "r4 2", "r4 3", "r4 bias all"]
    assert distinct_names(["a/best", "b/best"]) == ["from-a-best", "from-b-best"]
    with pytest.raises(ConfigError, match=r"True is no configuration; give a rank"):
        distinct_names([True])


def test_names_never_leave_the_run_directory(tmp_path: Path) -> None:
    x = torch.randn(40, 4)
    names = ["../../../../escape", "/etc/x", "..", "q,v = 4 (all)", "=1+1"]
    found = sweep(
        nn.Sequential(nn.Linear(4, 2)),
        {name: (LoRAConfig(r=1), Training(lr=1e-2, epochs=1)) for name in names},
        train=(x, x.sum(1, keepdim=True)),
        loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        baseline=False,
        plan="grid",
        seeds=1,
        out=tmp_path / "a" / "out",
        progress="quiet",
    )
    assert {c["name"] for c in found.results["configurations"]} == set(names)
    assert len(list((tmp_path / "a" / "out" / "adapters").iterdir())) == len(names)
    outside = [path for path in tmp_path.rglob("*") if "out" not in path.parts and path.is_file()]
    assert outside == []
