"""`rankwise train`, then `evaluate`, `generate` and `merge` with what it gave; model cards beside the adapters."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("transformers")
import transformers

from rankwise.adapter_files import load_adapter
from rankwise.cli import main
from rankwise.errors import ConfigError
from rankwise.report import read_results
from rankwise.tasks.text.data.examples import PromptPair
from rankwise.tasks.text.data.labels import read_labels
from rankwise.tasks.text.encode.sft import SftOptions, prompt_ids, tokenize_sft
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.model.models import ModelOptions, load_text_model
from rankwise.tasks.text.prompting import Prompting, read_prompting
from rankwise.tasks.text.use.generating import as_prompt, write_texts
from rankwise.tasks.text.use.options import UseOptions
from rankwise.tasks.text.use.served import BASE_NAME, load_adapted
from text_models import make_model, make_tokenizer

WORDS = ("one", "two", "three", "cat", "sat", "The", "mat")
QUICK = ["--epochs", "2", "--batch-size", "8", "--lr", "1e-2", "--rank", "2", "--quiet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, and a trained adapter for each task."""
    root = tmp_path_factory.mktemp("use")
    g = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(7, (4 + n % 9,), generator=g)) for n in range(60)]
    labelled = [{"text": f"{text} {n}", "label": "abc"[n % 3]} for n, text in enumerate(texts)]
    pairs = [{"prompt": f"{text} {n}", "completion": f" {WORDS[n % 7]} sat"} for n, text in enumerate(texts)]
    for name, rows in (("labelled", labelled), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind, task, data in (("bert", "classify", "labelled"), ("llama", "sft", "pairs")):
        make_model(kind, layers=1).save_pretrained(root / kind)
        make_tokenizer().save_pretrained(root / kind)
        flags = ["--model", str(root / kind), "--task", task, "--data", str(root / f"{data}.jsonl")]
        assert main(["train", *flags, *QUICK, "--out", str(root / f"{task}-run")]) == 0
    return root


def adapter(place: Path, task: str) -> Path:
    (folder,) = (place / f"{task}-run" / "adapters").iterdir()
    return folder


def loaded_for(place: Path, task: str) -> Any:
    folder = adapter(place, task)
    labels = read_labels(folder) if task == "classify" else None
    model = load_text_model(place / {"classify": "bert", "sft": "llama"}[task], task, labels, ModelOptions())
    load_adapter(model.model, folder)
    return model


@pytest.mark.parametrize("task", ["classify", "sft"])
def test_a_card_lies_beside_each_adapter(place: Path, task: str) -> None:
    folder, results = adapter(place, task), read_results(place / f"{task}-run")
    card = (folder / "README.md").read_text()
    run = next(run for run in results["runs"] if run["adapter"])
    assert f"rank 2, {run['trainable_parameters']:,} trainable parameters" in card
    assert f"{run['metric']:.4g}" in card
    assert "cut off" in card
    (index,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
    assert index["results"][0]["metrics"][0]["value"] == run["metric"]
    assert index["results"][0]["dataset"]["type"] == "jsonl"
    if task == "sft":
        base, adapted = (math.exp(loss) for loss in (results["base"]["metric"], run["metric"]))
        assert f"| perplexity | {base:.4g} | {adapted:.4g} |" in card
    assert ("| vLLM | yes |" in card) == (task == "sft"), "vLLM takes no heads of adapters' own"
    steps = [line for line in card.splitlines() if line.startswith(f"| {run['steps']} |")]
    assert len(steps) == 1, "the curve's last point"


def test_the_metric_is_the_sweeps(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the whole file both are computed here; the run's own test split is not kept, so the model is the measure."""
    folder, out = adapter(place, "classify"), tmp_path / "figures.json"
    assert main(["evaluate", str(folder), "--data", str(place / "labelled.jsonl"), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    assert list(figures) == ["majority class", folder.name], "the head of the base is not trained"
    model = loaded_for(place, "classify")
    rows = [json.loads(line) for line in (place / "labelled.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        with torch.no_grad():
            logits = model.call(model.model, dict(model.tokenizer([row["text"]], return_tensors="pt")))
        right += read_labels(folder).names[int(logits.argmax())] == row["label"]
    assert figures[folder.name]["accuracy"] == pytest.approx(right / len(rows))
    assert folder.name in capsys.readouterr().out


def test_evaluating_a_language_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(place, "sft")
    flags = ["--data", str(place / "pairs.jsonl"), "--generate", "4", "--max-new-tokens", "4", "--json"]
    assert main(["evaluate", str(folder), *flags]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert list(figures) == [BASE_NAME, folder.name]
    assert {"loss", "perplexity", "exact_match", "bleu", "rougeL"} <= figures[BASE_NAME].keys()
    assert figures[folder.name]["loss"] < figures[BASE_NAME]["loss"]
    model = loaded_for(place, "sft")
    total = count = 0.0
    for line in (place / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        given = model.tokenizer(row["prompt"])["input_ids"]
        given = given[:-1] if given[-1] == model.tokenizer.eos_token_id else given
        answer = model.tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        answer += [model.tokenizer.eos_token_id] if model.tokenizer.eos_token_id is not None else []
        with torch.no_grad():
            logits = model.model(torch.tensor([given + answer])).logits[0, len(given) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    assert figures[folder.name]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_part_of_the_test_examples_is_the_sweeps(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(place / "pairs.jsonl")
    flags = ["--model", str(place / "llama"), "--task", "sft", "--data", data, "--test", data, "--limit-test", "13"]
    flags += [*QUICK, "--limit-train", "20", "--separator", r" ->\n", "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 0
    results = read_results(tmp_path / "run")
    assert [results["data"][what]["n"] for what in ("train", "test")] == [20, 13]
    (folder,) = (tmp_path / "run" / "adapters").iterdir()
    assert read_prompting(folder) == Prompting(separator=" ->\n")
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", data, "--limit", "13", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "13 of 60 examples are used, drawn with seed 0." in said["notes"]
    (run,) = results["runs"]
    assert said["figures"][folder.name]["loss"] == pytest.approx(run["metric"], rel=1e-5)
    assert said["figures"][BASE_NAME]["loss"] == pytest.approx(results["base"]["metric"], rel=1e-5)


def test_each_answer_is_held_against_all_references_of_its_input(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's own answer, put among others, is found whichever examples the loss is taken of."""
    prompts = ["The cat", "one two", "mat"]
    llama = load_adapted([], UseOptions(model=str(place / "llama")))
    answers = write_texts(llama, BASE_NAME, list(map(as_prompt, prompts)), Writing(max_new_tokens=3))
    rows = [{"prompt": p, "completion": c} for p, a in zip(prompts, answers, strict=True) for c in ("never", a, "no")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(place / "llama"), "--data", str(tmp_path / "data.jsonl"), "--limit", "1", "--json"]
    assert main(["evaluate", *flags, "--generate", "2", "--max-new-tokens", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["figures"][BASE_NAME]["exact_match"] == 1.0
    assert "Answers were written for 2 of 3 inputs, with 6 references." in said["notes"]


def test_inputs_without_room_for_an_answer_are_left_out_and_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(place / "llama"), "--data", str(tmp_path / "data.jsonl"), "--max-new-tokens", "9", "--json"]
    long_text = "?" * 120  # and as many tokens, of 128
    rows = [{"prompt": text, "completion": " sat"} for text in ("The cat", long_text, "two", "mat")]
    shown = []
    for kept in (rows, [rows[0], *rows[2:]], rows[1:2]):
        # Blank lines: what is named is the line of the file.
        (tmp_path / "data.jsonl").write_text("\n\n".join(map(json.dumps, kept)))
        assert main(["evaluate", *flags, "--generate", "4"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    (whole, short, long) = shown
    left_out = "inputs have no room for an answer of 9 tokens in the context (the longest has 120) and none was written"
    assert f"1 of 4 {left_out}: line 3." in whole["notes"]
    assert "Answers were written for 3 of 4 inputs, with 3 references." in whole["notes"]
    assert whole["figures"][BASE_NAME]["rougeL"] == short["figures"][BASE_NAME]["rougeL"]
    assert f"1 of 1 {left_out}: line 1." in long["notes"]
    assert long["figures"][BASE_NAME].keys() == {"loss", "perplexity"}
    adapted = load_adapted([], UseOptions(model=str(place / "llama")))
    with pytest.raises(ConfigError, match=r"The prompt of line 8 has 120 tokens; with 64 for the answer"):
        write_texts(adapted, BASE_NAME, [as_prompt("one", 7), as_prompt(long_text, 8)], Writing())


def test_answers_are_those_of_each_prompt_alone(place: Path) -> None:
    adapted = load_adapted([adapter(place, "sft")], UseOptions())
    prompts = [as_prompt(text) for text in ("The cat", "one two three cat sat", "mat")]
    how = Writing(max_new_tokens=5)
    for name in (BASE_NAME, *adapted.names):
        together = write_texts(adapted, name, prompts, how)
        assert together == [write_texts(adapted, name, [prompt], how)[0] for prompt in prompts]
    drawn = [write_texts(adapted, BASE_NAME, prompts, Writing(temperature=5.0, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generating_side_by_side(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(adapter(place, "sft"))
    (tmp_path / "prompts.txt").write_text("The cat\n\none two\n")
    assert main(["generate", folder, "--file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "3", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["The cat", "one two"]
    assert all(list(line["answers"]) == [BASE_NAME, Path(folder).name] for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\n" + "cat " * 500 + "\none two\n"))
    assert main(["generate", folder, "--no-base", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr()
    assert said.out.count("prompt") == 2
    assert "has no room for it" in said.err, "the next prompt is answered all the same"
    (tmp_path / "prompts.txt").write_text("The cat\n" + "cat " * 500 + "\none two\n")
    assert main(["generate", folder, "--file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "3", "--json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in said.out.splitlines()] == ["The cat", "one two"]
    assert "1 of 3 inputs have no room for an answer of 3 tokens" in said.err
    assert said.err.rstrip().endswith("line 2.")
    with pytest.raises(ConfigError, match="writes no text"):
        write_texts(load_adapted([adapter(place, "classify")], UseOptions()), BASE_NAME, [as_prompt("a")], Writing())


def test_answers_are_the_likeliest_tokens_up_to_the_end_that_training_taught(place: Path) -> None:
    """Whatever the model's own configuration would rather do."""
    adapted = load_adapted([adapter(place, "sft")], UseOptions(chat=True))
    model: Any = adapted.loaded.model
    prompts, how = [as_prompt("The cat"), as_prompt("one two three cat sat")], Writing(max_new_tokens=12)
    plain = write_texts(adapted, BASE_NAME, prompts, how)
    model.generation_config.repetition_penalty, model.generation_config.num_beams = 5.0, 3
    model.generation_config.min_length, model.generation_config.no_repeat_ngram_size = 90, 1
    assert write_texts(adapted, BASE_NAME, prompts, how) == plain
    given: list[dict[str, Any]] = []
    generate = model.generate
    model.generate = lambda **named: given.append(named) or generate(**named)
    tokenizer: Any = adapted.loaded.tokenizer
    tokenizer.eos_token = "<pad>"
    write_texts(adapted, BASE_NAME, prompts, how)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in given[0]["eos_token_id"], "what the template writes after an answer"
    # Filled up before the prompt, where a causal model doesn't look.
    ids, mask = given[0]["input_ids"], given[0]["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist())
    assert (ids[mask == 0] == tokenizer.pad_token_id).all()


def test_a_prompt_has_the_tokens_that_training_puts_before_the_answer(place: Path) -> None:
    """Also where the tokenizer ends every text with its own token."""
    from tokenizers.processors import TemplateProcessing

    loaded = load_text_model(place / "llama", "sft")
    tokenizer: Any = loaded.tokenizer
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert tokenizer("The cat")["input_ids"][-1] == tokenizer.eos_token_id
    options = SftOptions()
    ids = prompt_ids(as_prompt("The cat"), tokenizer, options, encoder_decoder=False)
    (row,) = tokenize_sft([PromptPair(1, "The cat", " sat")], tokenizer, loaded.config, options).rows
    assert row.ids[: len(ids)] == ids
    assert row.labels[len(ids) :] == row.ids[len(ids) :]
    assert prompt_ids(as_prompt("The cat"), tokenizer, options, encoder_decoder=True)[-1] == tokenizer.eos_token_id


def test_answers_come_batch_by_batch(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rankwise.tasks.text.use import generating

    (tmp_path / "prompts.txt").write_text("The cat\none two\nThe cat\n")
    write, asked = generating.write_texts, []

    def stopped(adapted: Any, name: str, prompts: Any, how: Writing) -> list[str]:
        asked.append((len(prompts), how.seed))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return write(adapted, name, prompts, how)

    flags = ["--model", str(place / "llama"), "--file", str(tmp_path / "prompts.txt"), "--max-new-tokens", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "write_texts", stopped)
        assert main(["generate", *flags, "--batch-size", "2", "--json"]) == 130
    assert asked == [(2, 0), (1, 2)]
    assert len(capsys.readouterr().out.splitlines()) == 2, "what was answered is there"


def test_prompts_of_a_file_of_examples(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "The cat", "completion": "x"}\n\n{"prompt": "one two"}\n')
    (tmp_path / "pairs.csv").write_text("mr,ref\nThe cat,x\none two,y\n")
    (tmp_path / "prompts.txt").write_text("The cat\n\none two\n")
    shown = []
    for name, more in (("pairs.jsonl", []), ("pairs.csv", ["--columns", "prompt=mr"]), ("prompts.txt", [])):
        flags = ["--model", str(place / "llama"), "--file", str(tmp_path / name), *more, "--max-new-tokens", "3"]
        assert main(["generate", *flags, "--json"]) == 0
        shown.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [line["prompt"] for line in shown[0]] == ["The cat", "one two"]
    assert shown[0] == shown[1] == shown[2]


def test_several_labels_of_a_csv_file(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = ('["a", "b"]', "[]", '["b"]', '["a"]')
    data = tmp_path / "several.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"{WORDS[n % 7]} {n}", cells[n % 4]) for n in range(40))])
    flags = ["--model", str(place / "bert"), "--task", "classify", "--data", str(data), "--labels", "several"]
    assert main(["train", *flags, *QUICK, "--out", str(tmp_path / "run")]) == 0
    (folder,) = (tmp_path / "run" / "adapters").iterdir()
    assert read_labels(folder).names == ("a", "b")
    assert main(["evaluate", str(folder), "--data", str(data)]) == 0


def test_a_merged_language_model_loads_in_transformers(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    capsys.readouterr()
    assert main(["merge", str(adapter(place, "sft")), "--out", str(out)]) == 0
    assert capsys.readouterr().err == "", "no bar of transformers"
    merged = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    batch = transformers.AutoTokenizer.from_pretrained(out)("The cat sat", return_tensors="pt")
    ours = loaded_for(place, "sft")
    with torch.no_grad():
        torch.testing.assert_close(
            merged(batch["input_ids"]).logits, ours.model(batch["input_ids"]).logits, rtol=1e-5, atol=1e-5
        )
    assert main(["merge", str(adapter(place, "sft")), "--out", str(out)]) == 2, "it is there"


LABELS = {"one": ["a", "b", "c"], "several": [["a", "b"], [], ["b"]], "number": [0.5, 1.5, -2.0]}


@pytest.mark.parametrize("kind", list(LABELS))
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_merged_classifier_is_loaded_as_its_card_says(place: Path, tmp_path: Path, pooling: str, kind: str) -> None:
    """The code of the card gives the labels and numbers of the adapter, for every kind of label."""
    data, run, out = tmp_path / "data.jsonl", tmp_path / "run", tmp_path / "merged"
    rows = [{"text": f"{WORDS[n % 7]} {WORDS[n % 5]} {n}", "label": LABELS[kind][n % 3]} for n in range(30)]
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(place / "bert"), "--task", "classify", "--data", str(data), "--pooling", pooling]
    assert main(["train", *flags, *QUICK, "--out", str(run)]) == 0
    (folder,) = (run / "adapters").iterdir()
    assert main(["merge", str(folder), "--out", str(out)]) == 0
    labels = read_labels(out)
    ours = load_text_model(place / "bert", "classify", labels, ModelOptions(pooling=pooling))
    load_adapter(ours.model, folder)
    texts = ["The cat sat", "one"]
    with torch.no_grad():
        logits = ours.call(ours.model, dict(ours.tokenizer(texts, return_tensors="pt", padding=True)))
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(out)), scope)
    found = scope["classify"](texts)
    config = transformers.AutoConfig.from_pretrained(out)
    assert [config.id2label[i] for i in range(len(labels.names))] == list(labels.names)
    for row, got in zip(logits, found, strict=True):
        probabilities = {"one": row.softmax(-1), "several": row.sigmoid(), "number": row}[kind]
        expected = dict(zip(labels.names, probabilities.tolist(), strict=True))
        if pooling == "auto":
            got = got if isinstance(got, list) else [got]
            pairs = [(it["label"], it["score"]) for it in got]
        else:
            pairs = [("value", got)] if kind == "number" else got if kind == "several" else [got]
        likely = {name for name, value in expected.items() if value > 0.5}
        assert {name for name, _ in pairs} == (
            {max(expected, key=lambda name: expected[name])}
            if kind == "one"
            else likely
            if kind == "several" and pooling == "mean"
            else {*labels.names}
        )
        for name, value in pairs:
            assert value == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_classifier_over_an_encoder_decoder(place: Path, tmp_path: Path, pooling: str) -> None:
    """The tokenizer adds no token by which the architecture's own classifier finds the end of a text."""
    make_model("t5", layers=1).save_pretrained(tmp_path / "t5")
    make_tokenizer().save_pretrained(tmp_path / "t5")
    data, run, out = str(place / "labelled.jsonl"), tmp_path / "run", tmp_path / "merged"
    flags = ["--model", str(tmp_path / "t5"), "--task", "classify", "--data", data, "--pooling", pooling]
    assert main(["train", *flags, *QUICK, "--out", str(run)]) == 0
    (folder,) = (run / "adapters").iterdir()
    assert main(["evaluate", str(folder), "--data", data, "--pooling", pooling]) == 0
    assert main(["merge", str(folder), "--pooling", pooling, "--out", str(out)]) == 0
    body = {"model": "T5ForSequenceClassification", "mean": "T5EncoderModel"}[pooling]
    assert json.loads((out / "config.json").read_text())["architectures"] == [body]


def test_prompts_are_written_as_in_training(place: Path, tmp_path: Path) -> None:
    assert read_prompting(adapter(place, "sft")) == Prompting()
    rows = [{"instruction": f"{WORDS[n % 7]} {n}", "output": WORDS[n % 5]} for n in range(30)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", str(place / "llama"), "--task", "sft", "--data", str(tmp_path / "data.jsonl")]
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    taught = (
        (["--no-chat"], Prompting(separator="\n\n"), r'as a JSON string, `"\n\n"`.'),
        ([], Prompting(chat=True), "by the tokenizer's chat template."),
        (
            ["--chat-template", template, "--chat"],
            Prompting(chat=True, chat_template=template),
            f"```jinja\n{template}",
        ),
    )
    for more, expected, said in taught:
        out = tmp_path / str(len(more))
        assert main(["train", *flags, *QUICK, *more, "--out", str(out)]) == 0
        (folder,) = (out / "adapters").iterdir()
        assert read_prompting(folder) == expected
        assert said in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["evaluate", "{root}/nothing", "--data", "{root}/pairs.jsonl"], "adapter_config.json can't be read"),
        (["evaluate", "--data", "{root}/pairs.jsonl"], "give it with --model"),
        (["evaluate", "{sft}", "--data", "{root}/nothing.jsonl"], "nothing.jsonl"),
        (["evaluate", "{sft}", "--data", "{root}/pairs.jsonl", "--model", "{root}/no"], 'no folder "{root}/no"'),
        (["evaluate", "{classify}", "--data", "{root}/strange.jsonl"], '"z" (line 1)'),
        (["generate", "{sft}", "--prompt", "a", "--file", "b"], "leave one of them out"),
        (["generate", "{sft}", "--prompt", "a", "--columns", "prompt=b"], "--columns names columns of --file"),
        (
            ["generate", "{sft}", "--file", "{root}/labelled.jsonl"],
            "generate needs messages; or prompt; or instruction",
        ),
        (["generate", "{sft}", "--file", "{root}/no.txt"], "no.txt can't be read"),
        (["generate", "{sft}", "--prompt", "a", "--temperature", "-1"], "--temperature is -1.0"),
        (["generate", "{sft}", "--prompt", "a", "--skip-bad-lines"], "--skip-bad-lines applies to --file"),
        (["generate", "{sft}", "--model", "{root}/llama", "--prompt", ""], "Line 1: the prompt is empty"),
        (
            ["evaluate", "{classify}", "--data", "{root}/labelled.jsonl", "--generate", "4"],
            "A classifier writes no text",
        ),
        (["evaluate", "{sft}", "--data", "{root}/plain.jsonl", "--generate", "4"], "Plain texts have no prompts"),
        (
            ["evaluate", "{classify}", "--data", "{root}/quoted.csv"],
            "its first line, the columns' names, can't be read",
        ),
        (["merge", "{sft}", "--out", "{root}"], "not empty"),
        (["merge", "{sft}", "--out", "."], ". is a folder of yours; give --out a new one."),
        (["merge", "{sft}", "--out", "{root}/new", "--no-chat"], "Unknown option: --no-chat"),
    ],
)
def test_mistakes_are_one_line(place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    (place / "strange.jsonl").write_text(json.dumps({"text": "one", "label": "z"}))
    (place / "plain.jsonl").write_text(json.dumps({"text": "one two"}))
    (place / "quoted.csv").write_text('"text"x,label\none,a\n')
    names = {"root": place, "sft": adapter(place, "sft"), "classify": adapter(place, "classify")}
    capsys.readouterr()
    assert main([flag.format(**names) for flag in flags]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Computing on ")]
    assert len(said) == 1
    assert message.format(**names) in said[0]
