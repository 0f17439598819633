"""What lies in an adapter's folder is looked at before it is used."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
from rankwise.errors import AdapterFileError, DataError
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.seen import count_seen
from rankwise.tasks.text.prompting import Prompting, read_prompting
from rankwise.tasks.text.use.served import base_of


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "adapters" / "a"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "adapter_config.json")
    os.mkfifo(tmp_path / "trained_on.npy")
    with pytest.raises(AdapterFileError, match="it is no regular file"):
        base_of(folder)
    assert count_seen(folder, [Labelled(1, "x", "a")]) == 0


@pytest.mark.parametrize("changed", [{"chat": "no"}, {"separator": 1}, {"chat_template": ["x"]}, {"date": 2026}])
def test_prompting_of_other_types_is_damaged(tmp_path: Path, changed: dict[str, Any]) -> None:
    Prompting(chat=True, chat_template="x", date="2026-07-04").save(tmp_path)
    assert read_prompting(tmp_path) == Prompting(chat=True, chat_template="x", date="2026-07-04")
    path = tmp_path / "prompting.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DataError, match=r"prompting\.json is damaged"):
        read_prompting(tmp_path)
