"""A checkpoint's own head is taken over with its labels in its order, or reinitialised where it is for others."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from transformers import AutoModelForSequenceClassification

from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.model.models import TextModel, load_text_model
from text_models import CONFIGS, make_tokenizer

IDS = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}


def checkpoint(folder: Path, names: list[str] | None, n: int = 2, kind: str = "bert") -> Any:
    config = CONFIGS[kind]()
    config.num_labels = n
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def loaded(folder: Path, *names: str, kind: str = "one", **how: Any) -> TextModel:
    return load_text_model(folder, "classify", Labels(kind, names), **how)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(**IDS).logits


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (["pos", "neg"], ("neg", "pos"), ("pos", "neg")),
        (["POSITIVE", "NEGATIVE"], ("negative", "positive"), ("positive", "negative")),
        (None, ("0", "1"), ("0", "1")),
        (["c", "a", "b"], ("a", "b", "c"), ("c", "a", "b")),
    ],
    ids=["another order", "other letters", "no names", "three"],
)
def test_the_same_labels_are_taken_over_in_the_heads_order(
    tmp_path: Path, kind: str, theirs: list[str] | None, ours: tuple[str, ...], order: tuple[str, ...]
) -> None:
    reference = checkpoint(tmp_path, theirs, len(ours), kind)
    own = loaded(tmp_path, *ours)
    assert own.labels == Labels("one", order)
    assert not own.new_head
    torch.testing.assert_close(logits(own.model), logits(reference))
    assert own.notes == ()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(["pos", "neg"], ("cat", "dog")), (None, ("neg", "pos")), (["1", "2"], ("0", "1")), (["a", "A"], ("A", "a"))],
    ids=["others", "no names", "other numbers", "names that can't be distinguished"],
)
def test_a_head_for_other_labels_is_begun_anew_and_it_is_said(
    tmp_path: Path, theirs: list[str] | None, ours: tuple[str, ...]
) -> None:
    reference = checkpoint(tmp_path, theirs)
    own = loaded(tmp_path, *ours)
    model: Any = own.model
    assert own.new_head == ("classifier",)
    assert own.labels == Labels("one", ours)
    assert not torch.equal(model.classifier.weight, reference.classifier.weight)
    assert not model.classifier.bias.any()
    assert any(f"not for {', '.join(ours)}; a new one begins" in note for note in own.notes)


@pytest.mark.parametrize("ours", [("neg", "pos"), ("pos", "neg")])
def test_an_adapters_labels_stay_in_their_order(tmp_path: Path, ours: tuple[str, ...]) -> None:
    checkpoint(tmp_path, ["pos", "neg"])
    own = loaded(tmp_path, *ours, fixed_order=True)
    assert own.labels == Labels("one", ours)
    assert bool(own.new_head) == (ours != ("pos", "neg")), "the base's figures would be those of other labels"


def test_numbers_and_a_head_of_another_size(tmp_path: Path) -> None:
    checkpoint(tmp_path / "number", None, 1)
    assert not loaded(tmp_path / "number", "value", kind="number").new_head
    checkpoint(tmp_path / "five", None, 5)
    own = loaded(tmp_path / "five", "value", kind="number")
    assert own.new_head == ("classifier",)
    assert any("not for numbers" in note for note in own.notes)
