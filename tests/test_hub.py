"""Checkpoints on the Hugging Face hub: which file an address means, error messages, and pushing. Without network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from models.checkpoints import open_checkpoint
from models.diffusion.stack import part_sources
from scripts import push_to_hub
from tests.commands import run_command
from util import hub
from util.errors import UserError
from util.hub import cached_revision, checkpoint_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def add_to_cache(cache: Path, repo: str, *files: str) -> Path:
    """Put files of a repository into the cache; returns the folder of the snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for file in files:
        path = root / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    return root / "snapshots" / COMMIT


def test_a_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    assert checkpoint_path(str(tmp_path / "a.pth"), "--resume") == tmp_path / "a.pth"


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        (("checkpoint.pth", "weights.safetensors", "config.json"), "checkpoint.pth"),
        (("other.pth", "weights.safetensors"), "weights.safetensors"),
        (("other.pth", ".hidden.pth", "log.txt"), "other.pth"),
        (("other.pth", "frozen-0123456789abcdef.safetensors"), "other.pth"),
    ],
)
def test_a_folder_is_the_checkpoint_in_it(tmp_path: Path, files: tuple[str, ...], meant: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    assert checkpoint_path(str(tmp_path), "--resume") == tmp_path / meant


@pytest.mark.parametrize(("files", "said"), [((), "no checkpoint"), (("a.pth", "b.pth"), r"several.*a\.pth, b\.pth")])
def test_a_folder_without_the_one_checkpoint(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=f"{said}.*--resume"):
        checkpoint_path(str(tmp_path), "--resume")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read .*, which --resume names: Permission denied"):
        checkpoint_path(str(tmp_path), "--resume")


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"nowhere/c\.pth does not exist; .* hf://org/repo with --pretrained_weights"):
        checkpoint_path("nowhere/c.pth", "--pretrained_weights")


@pytest.mark.parametrize("source", ["hf://org/repo", "hf://org/repo/sub/model.pth"])
def test_a_cached_repository_needs_no_network(cache: Path, source: str) -> None:
    folder = add_to_cache(cache, "org/repo", "sub/model.pth", "README.md")
    assert checkpoint_path(source, "--resume") == folder / "sub/model.pth"


@pytest.mark.parametrize("source", ["hf://org/repo", "hf://org/repo/model.pth", "hf://org/repo@v2/model.pth"])
def test_offline_is_one_sentence(cache: Path, source: str) -> None:
    with pytest.raises(UserError, match=r"not in the cache, and the hub cannot be reached.*--resume") as error:
        checkpoint_path(source, "--resume")
    assert str(error.value).startswith(source) and "\n" not in str(error.value)


def test_a_cached_repository_without_that_file(cache: Path) -> None:
    add_to_cache(cache, "org/repo", "model.pth")
    with pytest.raises(UserError, match=r"hf://org/repo/other\.pth is not in the cache"):
        checkpoint_path("hf://org/repo/other.pth", "--resume")


@pytest.mark.parametrize("source", ["hf://", "hf://org", "hf://org/", "hf:///repo"])
def test_incomplete_addresses(source: str) -> None:
    with pytest.raises(UserError, match="does not name a repository"):
        checkpoint_path(source, "--resume")


def test_an_invalid_repository_name(cache: Path) -> None:
    with pytest.raises(UserError, match="has no repository"):
        checkpoint_path("hf://org/re po/c.pth", "--resume")


class Online:
    """The hub, with one repository."""

    files = ("README.md", "VD-IT_ytvos.pth")

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def model_info(self, repo: str, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repo: str, file: str, revision: str | None) -> str:
        self.asked.append((repo, file, revision))
        if file not in self.files:
            raise EntryNotFoundError(f"404 {file}")
        return f"/cache/{file}"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Online:
    found = Online()
    monkeypatch.setattr(hub, "HfApi", lambda: found)
    monkeypatch.setattr(hub, "hf_hub_download", found.download)
    return found


def test_a_repository_is_the_checkpoint_in_it(online: Online) -> None:
    assert checkpoint_path("hf://buxiangzhiren/VD-IT", "--resume") == Path("/cache/VD-IT_ytvos.pth")
    checkpoint_path("hf://buxiangzhiren/VD-IT@main/VD-IT_ytvos.pth", "--resume")
    assert online.asked == [
        ("buxiangzhiren/VD-IT", "VD-IT_ytvos.pth", None),
        ("buxiangzhiren/VD-IT", "VD-IT_ytvos.pth", "main"),
    ]


def test_a_file_that_the_repository_lacks(online: Online) -> None:
    with pytest.raises(UserError, match=r"repository org/repo has no file other\.pth"):
        checkpoint_path("hf://org/repo/other.pth", "--resume")


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("off"), LocalEntryNotFoundError("none"), ConnectionError("x")])
def test_a_hub_that_goes_away(online: Online, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match="cannot be reached"):
        checkpoint_path("hf://org/repo", "--resume")


def test_revisions(cache: Path) -> None:
    add_to_cache(cache, "org/stack", "unet/config.json")
    assert cached_revision("org/stack", "unet/config.json") == COMMIT
    assert cached_revision("org/stack", "vae/config.json") is None
    assert cached_revision("org/other", "config.json") is None
    assert cached_revision("/no/hub/id", "config.json") is None


def test_frozen_parts_may_be_named_like_checkpoints() -> None:
    sources = part_sources("hf://ali-vilab/text-to-video-ms-1.7b", text_encoder="hf://roberta-base")
    assert sources["unet"] == "ali-vilab/text-to-video-ms-1.7b"
    assert sources["sentence_encoder"] == "roberta-base"


# -------- scripts.push_to_hub ---------------------------------------------------


SCORES = {"metrics": {"J&F": 61.5, "J": None}, "config": {"dataset_file": "davis", "split": "valid"}}


@pytest.fixture
def hub_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in place of the hub."""

    class Api:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            (tmp_path / "hub" / repo).mkdir(parents=True)

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            for file in folder_path.iterdir():
                (tmp_path / "hub" / repo_id / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(push_to_hub, "HfApi", Api)
    return tmp_path / "hub"


def test_there_and_back(hub_folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(SCORES))
    results = ("--results", tmp_path / "results.json")
    done = run_command(push_to_hub.main, tiny_checkpoint, "me/my-model", "--private", *results)
    assert done.returncode == 0, done.stderr
    assert "https://huggingface.co/me/my-model" in done.stdout
    assert sorted(path.name for path in (hub_folder / "me/my-model").iterdir()) == ["README.md", "weights.safetensors"]
    card = (hub_folder / "me/my-model/README.md").read_text()
    assert 'load_pretrained("me/my-model")' in card and "| J&F | 61.50 |" in card and "## Scores: davis valid" in card
    assert "| J |" not in card, "a metric that could not be computed is left out"
    assert str(tmp_path) not in card
    pulled = open_checkpoint(str(hub_folder / "me/my-model"), "--resume")
    own = open_checkpoint(str(tiny_checkpoint), "--resume")
    assert pulled.weights.keys() == own.weights.keys()
    assert all((pulled.weights[name] == value).all() for name, value in own.weights.items())


def test_preview_without_pushing(hub_folder: Path, tiny_checkpoint: Path, tmp_path: Path):
    done = run_command(push_to_hub.main, tiny_checkpoint, "hf://me/x", "--folder", tmp_path / "look")
    assert done.returncode == 0 and "nothing was pushed" in done.stdout
    assert not hub_folder.exists() and (tmp_path / "look" / "README.md").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere.pth", "me/x"), "nowhere.pth does not exist"),
        (("{ok}", "justaname"), "justaname is not the name of a repository"),
        (("{ok}", "me/x", "--results", "{tmp}/none.json"), "none.json"),
        (("{ok}", "me/x", "--results", "{tmp}/list.json"), "has no 'metrics'"),
    ],
)
def test_mistakes_are_one_sentence(
    hub_folder: Path, tiny_checkpoint: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
):
    (tmp_path / "list.json").write_text("[]")
    done = run_command(push_to_hub.main, *(word.format(ok=tiny_checkpoint, tmp=tmp_path) for word in words))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
    assert not hub_folder.exists()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (OSError("no route"), "cannot be reached (OSError)"),
        (403, "you cannot write to me/x"),
        (500, "the hub refuses me/x: so it said; choose another name, or try again later"),
        (push_to_hub.HFValidationError(), "the hub refuses me/x: HFValidationError; choose another name"),
    ],
)
def test_errors_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, sentence: str):
    if isinstance(error, int):
        status, error = error, HfHubHTTPError.__new__(HfHubHTTPError)
        error.response, error.args = SimpleNamespace(status_code=status), ("so it said",)

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(push_to_hub, "HfApi", lambda: SimpleNamespace(create_repo=refuse))
    with pytest.raises(push_to_hub.UserError) as raised:
        push_to_hub.push(tmp_path, "me/x", private=False)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
