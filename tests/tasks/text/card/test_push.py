"""`rankwise push` against a stand-in for the hub: a server on this machine that speaks what huggingface_hub speaks."""

import base64
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

import rankwise
from rankwise import LoRAConfig, inject, save_adapter
from rankwise.cli import main
from rankwise.report import read_results

pytest.importorskip("huggingface_hub")

# huggingface_hub uploads files in a way that its HTTP library would rather have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TESTS = Path(__file__).resolve().parents[3]
TOKEN = "hf_right"


class Hub(ThreadingHTTPServer):
    """Keeps repositories: name -> whether it is private, and its files; the token's owner is "me"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.broken = False


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, content: object = None) -> None:
        body = json.dumps({"error": content} if isinstance(content, str) else content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", str(content))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name not in self.server.private:
            return self.reply(404, "Repository not found")
        return self.reply(200, {"id": name, "private": self.server.private[name], "siblings": []})

    def do_PUT(self) -> None:
        self.server.blobs[self.path.removeprefix("/blobs/")] = self.body()
        self.reply(200)

    def do_POST(self) -> None:
        hub, content = self.server, self.body()
        if self.server.broken:
            return self.reply(500, "Internal error")
        if self.path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(content)["content"].split("---\n")[1])
            base = head.get("base_model", "a")
            errors = [{"message": f'"base_model" with value "{base}" is not valid.'}] if base.startswith("/") else []
            return self.reply(400 if errors else 200, {"errors": errors, "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, "Invalid user token.")
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            if not name.startswith("me/"):
                return self.reply(403, "You don't have the rights to create a model under this namespace")
            if name in hub.private:
                return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            hub.private[name], hub.files[name] = asked.get("visibility") == "private", {}
            return self.reply(200, {"url": f"{hub.url}/{name}"})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{hub.url}/blobs/{asked['oid']}"}}}
                for asked in json.loads(content)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        name, _, what = self.path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            return self.reply(200, {"files": modes})
        assert what == "commit", self.path
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                hub.files[name][value["path"]] = base64.b64decode(value["content"])
            else:
                assert hashlib.sha256(hub.blobs[value["oid"]]).hexdigest() == value["oid"]
                hub.files[name][value["path"]] = hub.blobs[value["oid"]]
        return self.reply(200, {"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    disable_progress_bars()
    yield server
    enable_progress_bars()
    server.shutdown()
    server.server_close()


def make_adapter(folder: Path, base: str | None = None) -> Path:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    extra = {} if base is None else {"base_model_name_or_path": base}
    inject(model, LoRAConfig(r=2, extra=extra))
    save_adapter(model, folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with one of its adapters, as `best`; its results are recorded ones."""
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(TESTS / "results" / "golden" / "digits_auto.json", place / "results.json")
    make_adapter(place / "adapters" / "r2-lr0.003-s0", base="owner/model")
    (place / "best").symlink_to("adapters/r2-lr0.003-s0")
    return place


def test_a_run_gives_its_recommended_adapter(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "me/banking", "--private", "--message", "First"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"{hub.url}/me/banking (private)"
    assert (hub.private, hub.messages) == ({"me/banking": True}, ["First"])
    files, folder = hub.files["me/banking"], run / "adapters" / "r2-lr0.003-s0"
    assert {*files} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert all(files[name] == (folder / name).read_bytes() for name in files if name != "README.md")
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    results = read_results(run)
    metric = next(r.metric for r in results.runs if r.name == folder.name)
    assert (head["library_name"], head["base_model"]) == ("peft", "owner/model")
    assert head["model-index"] == [
        {
            "name": folder.name,
            "results": [
                {
                    "task": {"type": "digits"},
                    "dataset": {"name": "digits", "type": "digits", "split": "test"},
                    "metrics": [{"type": "accuracy", "value": metric, "name": "test accuracy"}],
                }
            ],
        }
    ]


def test_a_run_with_one_adapter_gives_that(hub: Hub, run: Path) -> None:
    (run / "best").unlink()
    content = json.loads((run / "results.json").read_text())
    for other in content["runs"]:
        other["adapter"] = "adapters/r2-lr0.003-s0" if other["name"] == "r2-lr0.003-s0" else None
    (run / "results.json").write_text(json.dumps(content))
    assert rankwise.push(run, "mine").folder == run / "adapters" / "r2-lr0.003-s0"


def test_a_card_is_uploaded_as_it_is_and_nothing_else_with_it(hub: Hub, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "mine")
    (folder / "README.md").write_text("---\ntags:\n- mine\n---\n# Mine\n")
    (folder / "secret.txt").write_text("x")
    pushed = rankwise.push(folder, "mine")
    assert pushed.url == f"{hub.url}/me/mine"
    assert (pushed.private, hub.private) == (False, {"me/mine": False})
    assert hub.files["me/mine"]["README.md"] == (folder / "README.md").read_bytes()
    assert {*hub.files["me/mine"]} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    again = rankwise.push(folder, "me/mine", message="Again")
    assert again.url == pushed.url
    assert hub.messages == ["Upload adapter mine", "Again"]


def test_a_base_of_this_machine_is_named_in_a_note_alone(hub: Hub, tmp_path: Path) -> None:
    """The hub refuses cards whose base_model is no name of a model there."""
    base = tmp_path / "base"
    base.mkdir()
    pushed = rankwise.push(make_adapter(tmp_path / "mine", base=str(base)), "mine")
    assert f'"{base}" of this machine' in pushed.notes[0]
    assert "base_model" not in yaml.safe_load(hub.files["me/mine"]["README.md"].decode().split("---\n")[1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["push", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("given", "repo", "expected"),
    [
        ("mine", "other/mine", "The token may not write to other/mine (403)"),
        ("mine", "no name!", '"no name!" is no name on the hub; give owner/name'),
        ("nowhere", "mine", "nowhere is not there"),
        ("empty", "mine", "empty holds no adapter (adapter_config.json) and no run"),
        ("whole", "mine", "`hf upload OWNER/NAME"),
        ("undecided", "mine", "recommends no adapter, so there is no"),
        ("damaged", "mine", "adapter_model.safetensors"),
    ],
)
def test_mistakes(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, repo: str, expected: str
) -> None:
    make_adapter(tmp_path / "mine")
    for name in ("empty", "whole"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "config.json").write_text("{}")
    (run / "best").unlink()
    run.rename(tmp_path / "undecided")
    damaged = make_adapter(tmp_path / "damaged") / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    line = refused(capsys, tmp_path / given, repo)
    assert expected in line
    assert not hub.files, "nothing has been uploaded"


def test_what_the_hub_refuses(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = make_adapter(tmp_path / "mine")
    hub.private["me/public"], hub.files["me/public"] = False, {}
    assert "is there already, and public" in refused(capsys, folder, "me/public", "--private")
    (folder / "README.md").write_text("---\nbase_model: /home/me\n---\n")
    assert '"base_model" with value "/home/me" is not valid' in refused(capsys, folder, "me/public")
    assert hub.files == {"me/public": {}}
    hub.broken = True
    assert "(500)" in refused(capsys, folder, "me/public")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.broken = False
    assert "The hub refuses the token (401)" in refused(capsys, folder, "me/new")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "There is no token for the hub; log in with `hf auth login`" in refused(capsys, folder, "me/new")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "The hub can't be reached" in refused(capsys, folder, "me/new")


def test_without_huggingface_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refused(capsys, make_adapter(tmp_path / "mine"), "mine")
    assert 'uploads need the package "huggingface_hub", of the extra "text": run pip install ".[text]"' in line


@pytest.mark.slow
def test_the_endpoint_and_the_token_of_the_environment(hub: Hub, run: Path) -> None:
    import subprocess

    given = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = (sys.executable, "-m", "rankwise", "push", str(run), "me/banking")
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model-index" in hub.files["me/banking"]["README.md"].decode()
