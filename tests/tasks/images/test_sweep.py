"""A sweep over images from the command line, and its adapters in use, here and in PEFT."""

import importlib.util
import json

import pytest
import torch
from composed_options import compose
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import rankwise
from image_models import make_image_model, make_images
from rankwise.cli import main
from rankwise.errors import ConfigError
from rankwise.tasks.images.model import conv_targets, load_image_model
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.model.source import ModelOptions
from rankwise.tasks.text.options import SweepOptions

FEW = ["--ranks", "1,2", "--epochs", "1", "--seeds", "1", "--plan", "grid", "--lr", "1e-3", "--quiet"]


def sweep(model, data, out, *more):
    return main(
        ["sweep", "--task", "images", "--model", str(model), "--data", str(data), "--out", str(out), *FEW, *more]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_image_model(root / "vit", "vit")
    make_images(root / "data", 12, 3)
    assert sweep(root / "vit", root / "data", root / "run") == 0
    return root


def test_the_run_is_complete(run):
    results = json.loads((run / "run" / "results.json").read_text())
    assert results["complete"]
    assert results["task"] == "images"
    assert results["metric"]["name"] == "accuracy"
    assert {c["name"] for c in results["configurations"]} == {"r1", "r2", "head", "full"}
    assert all(r["status"] == "finished" for r in results["runs"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_gives_in_peft_what_it_gives_here(run):
    folder = run / "run" / "adapters" / "r2-lr0.001-s0"
    labels = json.loads((folder / "labels.json").read_text())["names"]
    base = AutoModelForImageClassification.from_pretrained(
        run / "vit", num_labels=len(labels), ignore_mismatched_sizes=True
    )
    theirs = PeftModel.from_pretrained(base, folder).eval()
    files = sorted((run / "data").rglob("*.png"))[::7]
    processor = AutoImageProcessor.from_pretrained(run / "vit")
    pixels = processor(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**pixels).logits.softmax(-1)
    found = rankwise.predict(folder, [str(file) for file in files])
    ours = torch.tensor([list(one.probabilities.values()) for one in found])
    assert torch.allclose(ours, expected, atol=1e-6)
    assert list(found[0].probabilities) == labels == ["digit 0", "digit 1", "digit 2"]
    assert 'pipeline("image-classification"' in (folder / "README.md").read_text()


def test_adapters_are_evaluated_and_asked_on_the_command_line(run, capsys):
    folders = [str(run / "run" / "adapters" / f"r{r}-lr0.001-s0") for r in (1, 2)]
    assert main(["evaluate", *folders, "--data", str(run / "data"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"].keys() == {"majority class", "r1-lr0.001-s0", "r2-lr0.001-s0"}
    assert found["figures"]["majority class"]["accuracy"] == pytest.approx(1 / 3)
    assert any("were trained on: figures on them flatter" in note for note in found["notes"])
    assert main(["predict", folders[0], "--file", str(run / "data" / "digit 1"), "--format", "jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert main(["predict", folders[0], "--text", "a"]) == 2
    assert "give --file an image" in capsys.readouterr().err
    assert main(["generate", folders[0], "--prompt", "a"]) == 2
    assert "classifies images" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_merged_folder_gives_in_transformers_what_the_adapter_gives_here(run, tmp_path, capsys, kind):
    """Both kinds of layers: linear ones, and convolutions with running statistics."""
    if kind == "vit":
        adapter = run / "run" / "adapters" / "r2-lr0.001-s0"
    else:
        make_image_model(tmp_path / "resnet", "resnet")
        assert sweep(tmp_path / "resnet", run / "data", tmp_path / "run", "--no-baseline") == 0
        adapter = tmp_path / "run" / "adapters" / "r2-lr0.001-s0"
    capsys.readouterr()
    merged = tmp_path / "merged"
    assert main(["merge", str(adapter), "--out", str(merged)]) == 0
    assert 'pipeline("image-classification"' in capsys.readouterr().out
    files = [str(file) for file in sorted((run / "data").rglob("*.png"))[::7]]
    ours = rankwise.predict(adapter, files)
    theirs = pipeline("image-classification", str(merged))([Image.open(file).convert("RGB") for file in files])
    for one, other in zip(ours, theirs, strict=True):
        assert one.label == other[0]["label"]
        expected = {found["label"]: found["score"] for found in other}
        assert one.probabilities == pytest.approx(expected, abs=1e-5)
    card = (merged / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "for classifying images" in card
    assert main(["merge", str(adapter), "--out", str(merged)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_images_that_have_changed_are_noticed_when_a_run_is_resumed(run, tmp_path, capsys):
    import shutil

    images = sorted((run / "data").rglob("*.png"))
    before = images[0].read_bytes()
    images[0].write_bytes(images[-1].read_bytes())
    try:
        shutil.copytree(run / "run", tmp_path / "run")
        assert main(["sweep", "--resume", str(tmp_path / "run"), "--more-seeds", "1", "--quiet"]) == 2
    finally:
        images[0].write_bytes(before)
    assert "data" in capsys.readouterr().err


@pytest.mark.parametrize("option", [{"max_length": 8}, {"pooling": "mean"}, {"chat": True}, {"join": True}])
def test_options_of_texts_are_refused(option):
    with pytest.raises(
        ConfigError, match=r"has no effect in --task images, which reads no texts; leave it out|--join joins texts"
    ):
        compose(SweepOptions, model="m", task="images", data="d", **option)


def test_a_head_that_is_trained_for_these_labels_stays_in_its_own_order(tmp_path):
    make_image_model(tmp_path / "model", "resnet")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    names = {"0": "b", "1": "a", "2": "c"}
    config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    known = load_image_model(tmp_path / "model", Labels("one", ("a", "b", "c")), ModelOptions())
    assert known.labels.names == ("b", "a", "c")
    assert known.new_head == ()
    assert known.head
    other = load_image_model(tmp_path / "model", Labels("one", ("x", "y", "z")), ModelOptions())
    assert other.new_head == other.head
    assert "a new one begins from the seed" in other.notes[0]
    assert not torch.equal(*(one.model.classifier[1].weight for one in (known, other)))


def test_convolutions_are_adapted_where_there_are_no_linear_layers(tmp_path):
    labels = Labels("one", ("a", "b"))
    loaded = {
        kind: load_image_model(make_image_model(tmp_path / kind, kind), labels, ModelOptions())
        for kind in ("vit", "resnet")
    }
    assert conv_targets(loaded["vit"].model, loaded["vit"].head) is None
    targets = conv_targets(loaded["resnet"].model, loaded["resnet"].head)
    assert targets
    assert all("convolution" in name for name in targets)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="timm needs torchvision")
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_models_of_timm(tmp_path, architecture):
    make_image_model(tmp_path / "model", architecture)
    make_images(tmp_path / "data", 12, 3)
    assert sweep(tmp_path / "model", tmp_path / "data", tmp_path / "run") == 0
