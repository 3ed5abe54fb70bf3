"""Passing a checkpoint on through the hub: what is pushed, what comes back, what is said when it cannot. No network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from models.checkpoints import open_checkpoint
from scripts import push_to_hub
from tests.commands import run_command

SCORES = {"metrics": {"J&F": 61.5, "J": None}, "config": {"dataset_file": "davis", "split": "valid"}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for the hub."""

    class Api:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            (tmp_path / "hub" / repo).mkdir(parents=True)

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            for file in folder_path.iterdir():
                (tmp_path / "hub" / repo_id / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    return tmp_path / "hub"


def test_there_and_back(hub: Path, tiny_checkpoint: Path, tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(SCORES))
    results = ("--results", tmp_path / "results.json")
    done = run_command(push_to_hub.main, tiny_checkpoint, "me/my-model", "--private", *results)
    assert done.returncode == 0, done.stderr
    assert "https://huggingface.co/me/my-model" in done.stdout
    assert sorted(path.name for path in (hub / "me/my-model").iterdir()) == ["README.md", "weights.safetensors"]
    card = (hub / "me/my-model/README.md").read_text()
    assert 'load_pretrained("me/my-model")' in card and "| J&F | 61.50 |" in card and "## Scores: davis valid" in card
    assert "| J |" not in card, "what could not be computed is no score"
    assert str(tmp_path) not in card
    pulled = open_checkpoint(str(hub / "me/my-model"), "--resume")
    own = open_checkpoint(str(tiny_checkpoint), "--resume")
    assert pulled["weights"].keys() == own["weights"].keys()
    assert all((pulled["weights"][name] == value).all() for name, value in own["weights"].items())


def test_a_look_before(hub: Path, tiny_checkpoint: Path, tmp_path: Path):
    done = run_command(push_to_hub.main, tiny_checkpoint, "hf://me/x", "--folder", tmp_path / "look")
    assert done.returncode == 0 and "nothing was pushed" in done.stdout
    assert not hub.exists() and (tmp_path / "look" / "README.md").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere.pth", "me/x"), "nowhere.pth does not exist"),
        (("{ok}", "justaname"), "justaname names no repository"),
        (("{ok}", "me/x", "--results", "{tmp}/none.json"), "none.json"),
        (("{ok}", "me/x", "--results", "{tmp}/list.json"), "has no 'metrics'"),
    ],
)
def test_bad_input(hub: Path, tiny_checkpoint: Path, tmp_path: Path, words: tuple[str, ...], sentence: str):
    (tmp_path / "list.json").write_text("[]")
    done = run_command(push_to_hub.main, *(word.format(ok=tiny_checkpoint, tmp=tmp_path) for word in words))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
    assert not hub.exists()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (OSError("no route"), "cannot be reached (OSError)"),
        (403, "does not let you write to me/x"),
        (500, "the hub refuses me/x"),
    ],
)
def test_what_the_hub_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, sentence: str):
    if isinstance(error, int):
        status, error = error, HfHubHTTPError.__new__(HfHubHTTPError)
        error.response, error.args = SimpleNamespace(status_code=status), ("so it said",)

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(push_to_hub, "HfApi", lambda: SimpleNamespace(create_repo=refuse))
    with pytest.raises(push_to_hub.UserError) as raised:
        push_to_hub.push(tmp_path, "me/x", private=False)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
