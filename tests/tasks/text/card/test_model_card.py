"""The model card: true to its facts, well-formed, and its code runs."""

import re
from dataclasses import replace

import pytest
import yaml

from rankwise.tasks.text.card.metadata import hub_name
from rankwise.tasks.text.card.model_card import CardFacts, CurvePoint, Figure, SplitFacts, model_card, write_card
from rankwise.tasks.text.data.labels import Labels

FACTS = CardFacts(
    name="r8-s0",
    base="owner/model",
    config={"r": 8, "lora_alpha": 32.0, "target_modules": {"v_proj", "q_proj"}, "task_type": "CAUSAL_LM"},
    trainable_parameters=1_234_567,
    data=(SplitFacts("train", 4672, "a|b.csv"), SplitFacts("test", 630, "test.csv")),
    figures=(Figure("loss", 2.34567, 1.5), Figure("BLEU", None, float("nan"))),
    curve=tuple(CurvePoint(step, 1 / step, 2 / step) for step in range(1, 101)),
    training={"learning rate": "0.001", "epochs": "3"},
    purpose="descriptions of restaurants",
    notes=("3 of 630 test examples are in the training data too.",),
    chat_template=True,
    version="0.1.0",
)


THREE = Labels("one", ("a", "b", "c"))


def tables(card: str) -> list[list[str]]:
    return [block.splitlines() for block in card.split("\n\n") if "\n|---" in block]


def test_facts_are_there():
    card = model_card(FACTS)
    for fact in ("# r8-s0", "rank 8, 1,234,567 trainable parameters, over `owner/model`", "for descriptions of rest",
                 "| rank, alpha | 8, 32 (alpha / r) |", "| adapted | q_proj, v_proj |", "| learning rate | 0.001 |",
                 r"| train | 4,672 | a\|b.csv |", "- 3 of 630 test examples", "| loss | 2.346 | 1.5 |",
                 "| BLEU | - | not finite |", "written by the tokenizer's chat template",
                 "Rankwise 0.1.0."):  # fmt: skip
        assert fact in card


def test_its_head_is_what_the_hub_reads():
    facts = replace(FACTS, base='a: "b"', task="sft", dataset='d/a: "b".csv')
    head = yaml.safe_load(model_card(facts).split("---\n")[1])
    (index,) = head.pop("model-index")
    assert head == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "rankwise"]}
    assert index == {
        "name": "r8-s0",
        "results": [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": 'a: "b".csv', "type": "csv", "split": "test"},
                "metrics": [{"type": "loss", "value": 1.5, "name": "test loss"}],
            }
        ],
    }


def test_its_head_names_a_base_of_the_hub_alone(tmp_path):
    """The hub refuses a card whose base_model is none of its models."""
    assert "base_model: owner/model\n" in model_card(replace(FACTS, hub_base="owner/model"))
    assert "base_model:" not in model_card(replace(FACTS, hub_base=hub_name(str(tmp_path))))
    assert "model-index" not in model_card(replace(FACTS, figures=(Figure("loss", 1.0, None),)))


def test_every_table_is_well_formed():
    found = tables(model_card(FACTS))
    assert len(found) >= 5
    for table in found:
        rows = [row for row in table if row.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "\n\n\n" not in model_card(FACTS)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    steps = [int(m) for m in re.findall(r"^\| (\d+) \| [\d.]+ \| [\d.]+ \|$", model_card(FACTS), re.MULTILINE)]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == (1, 100)
    assert "training loss" not in model_card(replace(FACTS, curve=()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 'AutoModelForCausalLM.from_pretrained("owner/model")'),
        ({"task_type": "SEQ_2_SEQ_LM"}, 'AutoModelForSeq2SeqLM.from_pretrained("owner/model")'),
        (
            {"task_type": "SEQ_CLS"},
            'AutoModelForSequenceClassification.from_pretrained(\n    "owner/model",\n    num_labels=len(labels),',
        ),
    ],
)
def test_how_to_load_it(change, expected):
    labels = THREE if "SEQ_CLS" in str(change) else None
    assert expected in model_card(replace(FACTS, config={**FACTS.config, **change}, labels=labels))


def test_a_base_in_a_gguf_file():
    assert 'from_pretrained("models", gguf_file="a.gguf")' in model_card(replace(FACTS, base="models/a.gguf"))


def test_what_is_taken_by_servers():
    card = model_card(FACTS)
    assert "| vLLM | yes |  |" in card
    assert "--max-lora-rank 8 --lora-modules r8-s0=ADAPTER" in card
    card = model_card(replace(FACTS, config={**FACTS.config, "modules_to_save": ["head"]}, pooled=True))
    assert "| vLLM | no | modules_to_save is head |" in card
    assert "| saved whole | head |" in card
    assert "vllm serve" not in card
    assert 'ModelOptions(pooling="mean")' in card


OWN = "{% for m in messages %}\n\n\n```{{ m['content'] }}|{% endfor %}\n"


def test_a_template_of_the_users_own():
    """It is there to the letter, blank lines and all, and every way to load the adapter takes it."""
    card = model_card(replace(FACTS, own_template=OWN))
    assert "by the tokenizer's chat template" not in card
    assert f"in place of the tokenizer's own:\n````jinja\n{OWN}\n````\n" in card
    assert 'tokenizer.chat_template = json.loads(Path("ADAPTER/prompting.json")' in card
    assert "r8-s0=ADAPTER --chat-template TEMPLATE\n```" in card
    assert "--chat-template" not in model_card(FACTS)


def test_what_stands_between_prompt_and_answer():
    card = model_card(replace(FACTS, chat_template=False, separator=" `->`  |\n"))
    assert r'Between prompt and answer stands, as a JSON string, ``" `->`  |\n"``.' in card
    assert "Between prompt" not in model_card(FACTS)
    assert "Between prompt" not in model_card(replace(FACTS, chat_template=False))


def test_ranks_that_differ():
    card = model_card(replace(FACTS, config={**FACTS.config, "rank_pattern": {"q_proj": 2}}))
    assert "| rank, alpha | 2 to 8, 32" in card


def test_it_lies_beside_the_adapter(tmp_path):
    assert write_card(FACTS, tmp_path / "r8").read_text() == model_card(FACTS)


# peft 0.21 reads a property that transformers 5 renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "bert", "pooled"])
def test_its_code_loads_a_real_adapter(kind, tmp_path):
    """The code of the card is run on a small base with an adapter that peft wrote."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from rankwise.tasks.text.model.models import ModelOptions, load_text_model
    from rankwise.tasks.text.prompting import Prompting
    from text_models import make_model, make_tokenizer

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model("llama" if kind == "llama" else "bert").save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    pooling = ModelOptions(pooling="mean" if kind == "pooled" else "model")
    loaded = load_text_model(base, "sft" if kind == "llama" else "classify", THREE, pooling)
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"] if kind == "llama" else ["query"],
        modules_to_save=list(loaded.head) or None,
        init_lora_weights=False,
        task_type={"llama": "CAUSAL_LM", "bert": "SEQ_CLS"}.get(kind),
    )
    trained = peft.get_peft_model(loaded.model, config).eval()
    trained.save_pretrained(adapter)
    THREE.save(adapter)
    facts = replace(FACTS, base=str(base), config=config.to_dict(), pooled=kind == "pooled")
    Prompting(chat=True, chat_template=OWN).save(adapter)
    facts = replace(facts, own_template=OWN if kind == "llama" else None)
    card = model_card(replace(facts, labels=None if kind == "llama" else THREE))
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("ADAPTER", str(adapter))
    scope: dict = {}
    exec(code, scope)
    ids = torch.arange(3, 9).unsqueeze(0)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    outputs = [model(**given) for model in (trained, scope["model"])]
    logits = [out if isinstance(out, torch.Tensor) else out.logits for out in outputs]
    torch.testing.assert_close(*logits)
    if kind == "llama":
        assert scope["tokenizer"].chat_template == OWN
    if kind == "bert":
        (found,) = scope["classify"](["one two"], top_k=None)
        batch = scope["tokenizer"](["one two"], return_tensors="pt")
        expected = dict(zip(THREE.names, trained(**batch).logits.softmax(-1)[0].tolist(), strict=True))
        assert {it["label"]: it["score"] for it in found} == pytest.approx(expected, abs=1e-5)
