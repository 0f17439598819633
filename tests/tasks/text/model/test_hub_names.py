"""Names that the hub does not have, or without their owner: a hint at once, no retries."""

from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ConfigError
from rankwise.tasks.text.model import hub_names
from rankwise.tasks.text.model.hub_names import check_model_name, owned_name

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the hub, of which there is a stand-in, has been asked for; it has bert-base-uncased alone."""
    names: list[str] = []

    def model_info(self: Any, name: str, timeout: float) -> None:
        assert timeout == hub_names.SECONDS
        names.append(name)
        if name == "unreachable":
            raise OSError("no network")
        if name == "a/b/c":
            raise hub.errors.HFValidationError("no")
        if name not in ("bert-base-uncased", "owner/model"):
            raise hub.errors.RepositoryNotFoundError.__new__(hub.errors.RepositoryNotFoundError)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(hub_names, "_is_cached", lambda name: name == "kept")
    return names


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("qwen2.5-0.5b", "Qwen/qwen2.5-0.5b"),
        ("gpt2", None),
        ("distilbert-base-uncased", None),
    ],
)
def test_well_known_names(name: str, whole: str | None) -> None:
    assert owned_name(name) == whole


def test_what_is_meant_is_said_without_asking(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match='did you mean "sentence-transformers/all-MiniLM-L6-v2"'):
        check_model_name("all-MiniLM-L6-v2")
    assert asked == []


def test_the_hub_is_asked_once(asked: list[str]) -> None:
    check_model_name("bert-base-uncased")
    check_model_name("owner/model")
    with pytest.raises(ConfigError, match="the hub has no model of that name: give owner/name"):
        check_model_name("nowhere")
    with pytest.raises(ConfigError, match=r"the hub can't be reached \(no network\)"):
        check_model_name("unreachable")
    with pytest.raises(ConfigError, match='no folder "runs/nowhere", and the hub has no model of that name'):
        check_model_name("runs/nowhere")
    with pytest.raises(ConfigError, match="it is no name of a model on the hub"):
        check_model_name("a/b/c")
    assert asked == ["bert-base-uncased", "owner/model", "nowhere", "unreachable", "runs/nowhere", "a/b/c"]


def test_nothing_is_asked_for_folders_and_what_is_kept(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("model", "kept", str(tmp_path / "model")):
        check_model_name(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_model_name("nowhere")
    assert asked == []
