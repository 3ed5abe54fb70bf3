"""Checkpoints on the Hugging Face hub: which file an address means, error messages, and pushing. Without network."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx2
import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from diffusers import WanTransformer3DModel
from huggingface_hub.cli import hf as hf_cli
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

import demo
from engine import build_mask_identity
from models import checkpoints, frozen_sources, load_pretrained
from models.authors import SIZES, authors_names, authors_weights
from models.backbones import build_backbone
from models.checkpoints import frozen_parts, held_parts, load_weights, open_checkpoint, part_hash, without_frozen
from models.diffusion import wan
from models.diffusion.generators import find_generator
from models.diffusion.stack import FrozenStack, load_stack, load_whole_stack, part_sources
from scripts import check_data, convert_checkpoint, push_to_hub, web_demo
from tests import hub_server
from tests.commands import run_command
from tests.hub_server import COMMIT, HubServer, checkpoint_path
from tests.tiny_models import change_unet, differences, restore, tiny_config, tiny_flags, tiny_model, write_authors
from tests.true_formats import write_toy_mevis
from util import hub
from util.checkpoint import read_content
from util.config import WEIGHTS, Config
from util.errors import UserError
from util.files import file_sha256
from util.hub import cached_revision
from util.video import open_media

T2V, CLIP, ROBERTA = "ali-vilab/text-to-video-ms-1.7b", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "roberta-base"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


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
    add_to_cache(cache, "org/card", "README.md")
    with pytest.raises(UserError, match=r"hf://org/card is not in the cache.* `hf download org/card --local-dir card`"):
        checkpoint_path("hf://org/card", "--resume")
    with pytest.raises(UserError, match=r"hf://org/repo/other\.pth is not in the cache.* `hf download org/repo other"):
        checkpoint_path("hf://org/repo/other.pth", "--resume")


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (T2V, f'hf download {T2V} --exclude "*.fp16.*" --local-dir text-to-video-ms-1.7b'),
        (f"hf://{CLIP}", f'hf download {CLIP} --exclude "open_clip*" --local-dir CLIP-ViT-H-14-laion2B-s32B-b79K'),
        (ROBERTA, "hf download roberta-base --local-dir roberta-base"),
    ],
)
def test_the_command_for_frozen_parts_leaves_out_files_that_are_never_read(
    cache: Path, source: str, command: str
) -> None:
    with pytest.raises(UserError, match=re.escape(f"`{command}`")):
        hub.open_repository(source, "--pretrained")
    with pytest.raises(UserError, match=r"`hf download laion/\S+ a\.pth --local-dir"):
        checkpoint_path(f"hf://{CLIP}/a.pth", "--resume")


@pytest.mark.parametrize("source", ["hf://", "hf://org", "hf://org/", "hf:///repo"])
def test_incomplete_addresses(source: str) -> None:
    with pytest.raises(UserError, match="does not name a repository"):
        checkpoint_path(source, "--resume")


def test_a_hub_that_is_away_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its cache is used, or one sentence says that there is none."""
    asked: list[str] = []

    def away(repo: str, **options: Any) -> None:
        asked.append(repo)
        raise OSError("no network")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=away))
    with pytest.raises(UserError, match=r"org/stack is not in the cache, and the hub cannot be reached.*--pretrained"):
        hub.open_repository("org/stack", "--pretrained")
    add_to_cache(cache, "org/stack", "unet/config.json")
    found = hub.open_repository("org/stack", "--pretrained")
    assert (list(found.keys), found.online, asked) == (["unet/config.json"], False, ["org/stack"] * 2)


def test_an_invalid_repository_name(cache: Path) -> None:
    with pytest.raises(UserError, match="has no repository"):
        checkpoint_path("hf://org/re po/c.pth", "--resume")


@pytest.fixture
def server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that can be reached, and an empty cache."""
    with HubServer() as found:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found
        found.shutdown()


def serve(server: HubServer, folder: Path, repo: str, **files: bytes) -> None:
    """Serve files of a repository; double underscores in their names are dots."""
    root = folder / "served" / repo
    for name, content in files.items():
        path = root / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    server.add(repo, root, "mit")


def test_a_download_is_announced_once(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(server, tmp_path, "org/repo", README__md=b"x", model__pth=bytes(2_000_000))
    path = checkpoint_path("hf://org/repo", "--resume")
    assert path.read_bytes() == bytes(2_000_000) and path.name == "model.pth"
    said = f"note: downloading 2.0 MB into {tmp_path / 'hub'}, once: org/repo (2.0 MB, licence: mit)\n"
    assert capsys.readouterr().out == said
    assert server.downloaded() == ["org/repo/model.pth"]
    assert checkpoint_path("hf://org/repo", "--resume") == path == checkpoint_path("org/repo", "--resume")
    assert (server.downloaded(), capsys.readouterr().out) == ([], "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert checkpoint_path("hf://org/repo/model.pth", "--resume") == path
    assert checkpoint_path(f"hf://org/repo@{COMMIT}", "--resume") == path


def test_a_download_that_is_cut_off_continues(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The library's warning of it is not shown; others are."""
    content = bytes(range(256)) * 90_000  # the library resumes at multiples of 10 MiB
    serve(server, tmp_path, "org/repo", model__pth=content)
    server.cuts = 1
    assert checkpoint_path("hf://org/repo", "--resume").read_bytes() == content
    assert server.downloaded() == ["org/repo/model.pth", f"org/repo/model.pth from {10 * 2**20}"]
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    logging.getLogger("huggingface_hub.file_download").warning("of another program")
    assert caplog.messages == ["of another program"]


def test_a_hub_that_names_paths_elsewhere(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither files nor hashes of a listing lead out of the cache."""
    serve(server, tmp_path, "org/repo", model__pth=b"1")
    files = server.repositories["org/repo"]
    files.update({"../../a.pth": tmp_path / "served/org/repo/model.pth", str(tmp_path / "b.pth"): files["model.pth"]})
    server.commit = "../../../out"
    found = hub.find_checkpoint("hf://org/repo", "--resume")
    assert isinstance(found, hub.HubFile) and list(found.repository.keys) == ["model.pth"]
    assert found.repository.folder.name == "unknown"
    monkeypatch.setattr(hub_server, "_key", lambda content: "../../out")
    found = hub.find_checkpoint("hf://org/repo", "--resume")
    assert isinstance(found, hub.HubFile) and found.converted.parent.name == "unknown"


def test_a_disk_that_is_too_small(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, tmp_path, "org/repo", model__pth=bytes(2_000_000))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"org/repo \(2\.0 MB.* has only 1\.0 MB left; make room, or set HF_HOME"):
        checkpoint_path("hf://org/repo", "--resume")
    assert server.downloaded() == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://org/none", "the hub has no repository hf://org/none, or it is private; give another with --resume"),
        ("hf://org/repo/other.pth", "the hub's repository org/repo has no file other.pth; give another with --resume"),
        ("hf://org/repo@v9", "the hub has no repository hf://org/repo@v9"),
        (
            "hf://org/repo",
            "hf://org/repo holds several checkpoints (a.pth, b.pth); name one: --resume hf://org/repo/a.pth",
        ),
        ("org/none", "there is no file or folder org/none here, and on the hub: the hub has no repository"),
        ("hf://org/empty", "hf://org/empty holds no checkpoint (*.pth, *.safetensors, *.pt, *.ckpt, *.pth.tar, *.bin)"),
    ],
)
def test_what_the_hub_lacks(server: HubServer, tmp_path: Path, source: str, said: str) -> None:
    serve(server, tmp_path, "org/repo", a__pth=b"1", b__pth=b"2")
    serve(server, tmp_path, "org/empty", README__md=b"1")
    with pytest.raises(UserError) as error:
        checkpoint_path(source, "--resume")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        (("checkpoint__pth", "log__txt"), "checkpoint.pth"),
        (("refcoco__pth", "vdit_ytvos__pth", "a2d__pth"), "vdit_ytvos.pth"),
        (("a__pth", "b__pth"), "a.pth"),
        (("model__pt", "notes__md"), "model.pt"),
        (("model__pth__tar",), "model.pth.tar"),
        (("optimizer__bin", "vdit__pth"), "vdit.pth"),
    ],
)
def test_the_file_of_published_weights_is_found(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: tuple[str, ...], meant: str
) -> None:
    serve(server, tmp_path, "buxiangzhiren/VD-IT", **dict.fromkeys(files, b"1"))
    found = hub.find_checkpoint(WEIGHTS["vdit"].source, "--weights")
    assert isinstance(found, hub.HubFile) and found.file == meant
    assert "CC BY-NC 4.0" in found.repository.licence
    assert ("holds" in capsys.readouterr().out) == (len([name for name in files if name.endswith("__pth")]) > 1)


def test_a_real_process_reads_hf_endpoint(server: HubServer, tmp_path: Path, root: Path) -> None:
    serve(server, tmp_path, "org/repo", model__pth=b"weights")
    code = "from tests.hub_server import checkpoint_path; print(checkpoint_path('org/repo', '--resume').read_text())"
    places = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, **places}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("\nweights\n"), done.stderr
    assert list((tmp_path / "home/hub/models--org--repo/snapshots").glob("*/model.pth"))


def test_revisions(cache: Path) -> None:
    add_to_cache(cache, "org/stack", "unet/config.json")
    add_to_cache(cache, "damo-vilab/text-to-video-ms-1.7b", "unet/config.json")
    assert cached_revision("org/stack") == cached_revision(f"org/stack@{COMMIT}") == COMMIT
    assert cached_revision("ali-vilab/text-to-video-ms-1.7b") == COMMIT
    assert cached_revision("org/other") is cached_revision("/no/hub/id") is None


# -------- Frozen parts ----------------------------------------------------------


@pytest.fixture
def parts(server: HubServer, small_stack: Path, tmp_path: Path) -> Path:
    """A copy of a tiny stack, and the hub that serves it as the published repositories."""
    folder = tmp_path / "published"
    shutil.copytree(small_stack, folder / "t2v", ignore=shutil.ignore_patterns("clip", "roberta", "*.json.stamp"))
    shutil.copytree(small_stack / "clip", folder / "clip")
    shutil.copytree(small_stack / "roberta", folder / "roberta")
    serve_parts(server, folder)
    return folder


def serve_parts(server: HubServer, folder: Path) -> None:
    server.add(T2V, folder / "t2v", "cc-by-nc-4.0")
    server.add(CLIP, folder / "clip", "mit")
    server.add(ROBERTA, folder / "roberta", "mit")


def tensors_of(stack: FrozenStack) -> dict[str, torch.Tensor]:
    """The weights of every part."""
    modules = (stack.unet, stack.vae, stack.text_encoder, stack.image_encoder, stack.sentence_encoder)
    return {f"{i}.{name}": value for i, module in enumerate(modules) for name, value in module.state_dict().items()}


def rewrite(folder: Path, variant: str = "", pickled: bool = False, half: bool = False) -> None:
    """Store the weights of every part in another of the hub's forms."""
    for path in folder.rglob("*.safetensors"):
        state = load_file(path)
        state = {name: value.half() if half else value for name, value in state.items()}
        stem = "pytorch_model" if pickled and path.stem == "model" else path.stem
        target = path.with_name(f"{stem}{variant}.{'bin' if pickled else 'safetensors'}")
        path.unlink()
        torch.save(state, target) if pickled else save_file(state, target, {"format": "pt"})


FORMS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "bin": {"pickled": True},
    "fp16 safetensors": {"variant": ".fp16", "half": True},
    "fp16 bin": {"variant": ".fp16", "half": True, "pickled": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_hubs_weights(
    form: str,
    server: HubServer,
    parts: Path,
    small_stack: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Online, then again from a cache that is reached by a link, without a network."""
    own = tensors_of(load_stack(str(small_stack)))
    rewrite(parts, **FORMS[form])
    serve_parts(server, parts)
    half = FORMS[form].get("half", False)
    capfd.readouterr()
    found = tensors_of(load_stack(T2V))
    assert found.keys() == own.keys()
    for name, value in own.items():
        assert torch.equal(found[name], value.half().float() if half else value), name
    out, err = capfd.readouterr()
    assert "licence: cc-by-nc-4.0" in out and out.count("note: downloading") == 1 and out.count("\n") == 1
    assert {record.name for record in caplog.records} <= {"models.diffusion.stack"}
    assert len([record for record in caplog.records if "half precision" in record.message]) == (5 if half else 0)
    assert not [str(warning.message) for warning in recwarn if "hub" in str(warning.message).lower()]
    assert not re.search(r"deprecat|rror occurred|unauthenticated", err, re.IGNORECASE), err
    server.requests.clear()
    hub_cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    hub_cache.rename(hub_cache.with_name("elsewhere"))
    hub_cache.symlink_to(hub_cache.with_name("elsewhere"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = tensors_of(load_stack(T2V))
    assert all(torch.equal(again[name], value) for name, value in found.items())
    assert server.requests == []


def test_only_files_that_are_read_are_downloaded(server: HubServer, parts: Path) -> None:
    """Full precision where there is a choice, and one format, whole."""
    for path in list(parts.rglob("*.safetensors")):
        for name in (
            *(f"{path.stem}.fp16.safetensors", f"{path.stem}.bin", "open_clip_pytorch_model.bin", "tf_model.h5"),
            *(f"{path.stem}-00001-of-00001.safetensors", f"{path.name}.index.json"),
        ):
            path.with_name(name).write_bytes(b"not read")
    (parts / "t2v/unet/unused.json").write_text("{}")
    serve_parts(server, parts)
    load_stack(f"hf://{T2V}", f"hf://{CLIP}@main", f"hf://{ROBERTA}")
    names = [path.partition("/resolve")[0] for path in server.downloaded()]
    weights = [name for name in names if not name.endswith((".json", ".txt"))]
    assert sorted(weights) == sorted(
        [
            *(f"{T2V}/{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
            *(f"{T2V}/text_encoder/model.safetensors", f"{CLIP}/model.safetensors", f"{ROBERTA}/model.safetensors"),
        ]
    )
    assert f"{T2V}/unet/unused.json" not in names and not [name for name in names if "index" in name]
    load_stack(T2V)
    assert not [request for request in server.requests if not request.startswith("GET /api/models/")]


@pytest.mark.parametrize(("load", "files"), [(load_stack, 10), (load_whole_stack, 7)])
def test_downloads_of_frozen_parts_show_their_progress(
    load: Callable[[str], Any], files: int, server: HubServer, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bars are silenced later."""
    huggingface_hub.utils.enable_progress_bars()
    download, silent = hub.hf_hub_download, []

    def watched(*args: Any, **options: Any) -> str:
        silent.append(huggingface_hub.utils.are_progress_bars_disabled())
        return download(*args, **options)

    monkeypatch.setattr(hub, "hf_hub_download", watched)
    load(T2V)
    assert len(silent) > files and not any(silent)


def split_weights(folder: Path) -> None:
    """Store the large parts of a tiny Wan in several files, as published, and its whole files as half precision."""
    for part, kind in (("transformer", WanTransformer3DModel), ("text_encoder", UMT5EncoderModel)):
        network = kind.from_pretrained(folder / part)
        (whole,) = (folder / part).glob("*.safetensors")
        whole.rename(whole.with_suffix(".fp16.safetensors"))
        network.save_pretrained(folder / part, max_shard_size="130KB")
        assert len(list((folder / part).glob("*-of-*"))) > 1


def test_a_repository_says_which_generator_it_holds(
    server: HubServer,
    tiny_wan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its frozen parts are then loaded from the hub, and without it from the cache."""
    folder = tmp_path / "wan"
    shutil.copytree(tiny_wan, folder)
    split_weights(folder)
    (folder / "roberta").rename(tmp_path / "roberta")
    server.add(WAN, folder, "apache-2.0")
    server.add(ROBERTA, tmp_path / "roberta", "mit")
    assert find_generator(f"hf://{WAN}").name == find_generator(WAN).name == "Wan 2.1"
    assert server.downloaded() == [f"{WAN}/transformer/config.json"]
    monkeypatch.setattr(hub_server, "LARGE", 50_000)
    read: list[str] = []
    monkeypatch.setattr(wan, "file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    local = wan.load_stack(str(folder), str(tmp_path / "roberta"), str(tmp_path / "text"))
    capsys.readouterr()
    loaded = wan.load_stack(WAN, "", str(tmp_path / "hub_text"))
    assert loaded.text_sha256 == local.text_sha256
    shards = [name for name in read if name.startswith("model-")]
    assert len(shards) == len({*shards}) > 1, "the cache names large files by their hash"
    pairs = zip(loaded.transformer.parameters(), local.transformer.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    files = server.downloaded()
    parts = {file.removeprefix(f"{WAN}/").partition("/")[0] for file in files if file.startswith(WAN)}
    assert parts == {"transformer", "vae", "text_encoder", "tokenizer"}
    assert not [file for file in files if ".fp16." in file or file.endswith("transformer/config.json")]
    sizes = [
        sum((at / file.removeprefix(f"{name}/")).stat().st_size for file in files if file.startswith(name))
        for name, at in ((WAN, folder), (ROBERTA, tmp_path / "roberta"))
    ]
    wanted = zip((WAN, ROBERTA), map(hub.shown_size, sizes), ("apache-2.0", "mit"), strict=True)
    listed = ", ".join(f"{name} ({size}, licence: {licence})" for name, size, licence in wanted)
    cache = huggingface_hub.constants.HF_HUB_CACHE
    out, err = capsys.readouterr()
    assert out == f"note: downloading {hub.shown_size(sum(sizes))} into {cache}, once: {listed}\n"
    assert "Loading" not in err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_generator(WAN).name == "Wan 2.1"
    features = [
        stack.text_cache(["the dog"], torch.device("cpu"))[0]
        for stack in (local, wan.load_stack(WAN, "", str(tmp_path / "hub_text")))
    ]
    assert torch.equal(*features)
    assert server.downloaded() == []


def test_published_weights_do_not_fit_another_generator(server: HubServer, tiny_wan: Path) -> None:
    """Which is said before gigabytes of both are downloaded."""
    server.add(WAN, tiny_wan)
    for source, own in ((WEIGHTS["vdit"].source, WAN), ("buxiangzhiren/VD-IT", str(tiny_wan))):
        with pytest.raises(UserError, match=r"VD-IT was trained with ModelScope, and .* holds Wan 2\.1; leave"):
            load_pretrained(source, pretrained=own)
    assert server.downloaded() == [f"{WAN}/transformer/config.json"]
    with pytest.raises(UserError, match="the hub has no repository org/nothing"):
        find_generator("org/nothing")


@pytest.mark.parametrize("legacy", [False, True])
def test_half_precision_in_several_files(legacy: bool, server: HubServer, small_stack: Path, tmp_path: Path) -> None:
    """As the libraries store large parts, and as diffusers did."""
    folder = tmp_path / "stack"
    for part in ("scheduler", "vae", "tokenizer"):
        shutil.copytree(small_stack / part, folder / part)
    own = load_whole_stack(str(small_stack))
    for part, size in (("unet", "1MB"), ("text_encoder", "50KB")):
        getattr(own, part).half().save_pretrained(folder / part, max_shard_size=size, variant="fp16")
        (index,) = (folder / part).glob("*.safetensors.index.fp16.json")
        files = list((folder / part).glob("*.fp16-*-of-*.safetensors"))
        assert len(files) > 1
        for path in files if legacy else ():
            _, number = path.stem.split(".fp16")
            older = path.name.replace(f".fp16{number}", f"{number}.fp16")
            index.write_text(index.read_text().replace(path.name, older))
            path.rename(path.with_name(older))
    server.add(T2V, folder)
    for source in (str(folder), T2V):
        found = load_whole_stack(source)
        for part in ("unet", "text_encoder"):
            assert differences(getattr(found, part).state_dict(), getattr(own, part).float().state_dict()) == []


def test_weights_of_a_backbone(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--backbone timm:NAME --backbone_weights DEFAULT``."""
    network = timm.create_model("test_resnet")
    (tmp_path / "timm").mkdir()
    save_file(network.state_dict(), tmp_path / "timm/model.safetensors")
    server.add(network.pretrained_cfg["hf_hub_id"], tmp_path / "timm")
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    for offline, server.broken, fails in ((True, "", 1), (False, "/resolve/", 1), (False, "", 0), (True, "", 0)):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        said = r"^cannot download the weights of timm:\S+: .+; connect to the network and run the command again, .*"
        with pytest.raises(UserError, match=said) if fails else contextlib.nullcontext():
            found = build_backbone("timm:test_resnet", "DEFAULT")
    assert torch.equal(found.network.conv1[0].weight, network.conv1[0].weight)


@pytest.mark.parametrize("given", ["damo-vilab/text-to-video-ms-1.7b", "ali-vilab/text-to-video-ms-1.7b"])
def test_two_names_of_a_repository(given: str, server: HubServer, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one name has downloaded is found under the other, online and offline."""
    server.moved = {"damo-vilab/text-to-video-ms-1.7b": T2V, "FacebookAI/roberta-base": ROBERTA}
    load_stack(given, text_encoder="FacebookAI/roberta-base")
    assert server.downloaded()
    other = ({"damo-vilab/text-to-video-ms-1.7b", T2V} - {given}).pop()
    load_stack(other)
    assert server.downloaded() == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load_stack(other)
    assert cached_revision(other) == cached_revision(ROBERTA) == COMMIT
    assert build_mask_identity(Config(pretrained=given)) == build_mask_identity(Config(pretrained=f"hf://{other}"))


def test_a_nested_configuration_of_clip(server: HubServer, parts: Path, small_stack: Path) -> None:
    """LAION's repository holds the whole CLIP: its configuration has those of both encoders, its file both weights."""
    path = parts / "clip/config.json"
    vision = json.loads(path.read_text())
    width = vision.pop("projection_dim")
    del vision["architectures"]
    text = {"model_type": "clip_text_model", "hidden_size": 32, "vocab_size": 49408, "num_hidden_layers": 2}
    whole = {"model_type": "clip", "projection_dim": width, "vision_config": vision}
    path.write_text(json.dumps({**whole, "text_config": text, "logit_scale_init_value": 2.6592}))
    weights = load_file(parts / "clip/model.safetensors")
    weights["text_model.final_layer_norm.weight"] = weights["logit_scale"] = torch.ones(1)
    save_file({name: value.clone() for name, value in weights.items()}, parts / "clip/model.safetensors")
    serve_parts(server, parts)
    found, own = tensors_of(load_stack(T2V)), tensors_of(load_stack(str(small_stack)))
    assert all(torch.equal(found[name], value) for name, value in own.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda parts: (parts / "clip/model.safetensors").rename(parts / "clip/open_clip_model.safetensors"),
            "does not hold all weights",
        ),
        (
            lambda parts: widen(parts / "clip/model.safetensors"),
            "holds vision_model.embeddings.class_embedding of shape",
        ),
        (lambda parts: widen(parts / "t2v/unet/diffusion_pytorch_model.safetensors"), r"conv_in.bias of shape \[33\]"),
        (lambda parts: (parts / "t2v/unet/config.json").unlink(), "cannot load the UNet from"),
    ],
)
def test_a_repository_that_does_not_fit(
    change: Callable[[Path], None], said: str, server: HubServer, parts: Path
) -> None:
    change(parts)
    serve_parts(server, parts)
    with pytest.raises(UserError, match=said) as error:
        load_stack(T2V)
    assert (
        "\n" not in str(error.value)
        and "report" not in str(error.value)
        and "ignore_mismatched" not in str(error.value)
    )


def widen(path: Path) -> None:
    """Give one tensor of a file another shape."""
    state = load_file(path)
    name = next(name for name, value in state.items() if value.ndim == 1)
    save_file({**state, name: torch.zeros(len(state[name]) + 1)}, path, {"format": "pt"})


def test_parts_of_which_the_cache_holds_some(server: HubServer, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_stack(T2V)
    shutil.rmtree(hub._cache(T2V) / "snapshots" / COMMIT / "unet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"weights of ali-vilab.*, folder unet, are not in the cache.*with --pretrained"
    ):
        load_stack(T2V)


@pytest.mark.parametrize("lost", ["-00002-of-", ".safetensors.index.json"])
def test_several_files_of_which_the_cache_lacks_one(
    lost: str, server: HubServer, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it lacks the part."""
    unet = load_whole_stack(str(parts / "t2v")).unet
    (parts / "t2v/unet/diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(parts / "t2v/unet", max_shard_size="1MB")
    serve_parts(server, parts)
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    absent = r"weights of ali-vilab.*, folder unet, are not in the cache.*with --pretrained"
    for offline, server.broken, said in (
        *((False, lost, rf"download of unet/\S+{lost}\S* from {T2V} broke off"), (True, "", absent)),
        *((False, "", ""), (True, "", "")),
    ):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
            found = load_whole_stack(T2V)
    assert differences(found.unet.state_dict(), unet.state_dict()) == []
    (file,) = (path for path in (parts / "t2v/unet").iterdir() if lost in path.name)
    file.unlink()
    with pytest.raises(UserError, match=r"the UNet in .* does not hold all weights"):
        load_whole_stack(str(parts / "t2v"))


def test_frozen_parts_may_be_named_like_checkpoints() -> None:
    sources = part_sources("hf://ali-vilab/text-to-video-ms-1.7b", text_encoder="hf://roberta-base")
    assert sources["unet"] == "ali-vilab/text-to-video-ms-1.7b"
    assert sources["sentence_encoder"] == "roberta-base"


# -------- Checkpoints of the authors --------------------------------------------


@pytest.fixture(scope="module")
def released(small_stack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A VD-IT in the authors' layout, and its weights by their names."""
    cfg, path = tiny_config(small_stack), tmp_path_factory.mktemp("authors") / "vdit.pth"
    return path, write_authors(path, tiny_model(cfg, seed=1), cfg)


WRAPPERS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, Any]]] = {
    "a.pt": lambda state: {"model": state},
    "a.pth.tar": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "a.ckpt": lambda state: {"state_dict": state, "epoch": 3},
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_kind_of_file(name: str, released: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """In a folder that holds nothing else, found by its suffix."""
    path, state = released
    args = torch.load(path, weights_only=False)["args"]
    torch.save({**WRAPPERS[name](state), "args": args}, tmp_path / name)
    found = open_checkpoint(str(tmp_path), "--resume").weights
    assert differences(found, open_checkpoint(str(path), "--resume").weights) == [] and len(found) > 500


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
def test_files_of_weights_alone(name: str, released: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """They state no sizes, so they are read as those of the published model."""
    state = {key: value.clone() for key, value in released[1].items()}
    save_file(state, tmp_path / name) if name == "a.safetensors" else torch.save(state, tmp_path / name)
    assert differences(authors_weights(read_content(tmp_path / name)), state) == []
    with pytest.raises(UserError, match=r"its options describe a model of at least 1\.31e\+07 trained numbers"):
        open_checkpoint(str(tmp_path), "--resume")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="holds the weights of neither VD-IT nor HCD"):
        open_checkpoint(str(tmp_path / "b.pth"), "--resume")


def test_checkpoints_of_hcd_with_adapters(small_stack: Path, tmp_path: Path) -> None:
    """Those of single epochs hold the adapters as peft names them, beside the weights that they adapt."""
    cfg = tiny_config(small_stack, model="hcd", lora_rank=4, lora_alpha=6.0)
    model, table = tiny_model(cfg, seed=1), authors_names("hcd")
    state = {}
    for name, value in model.state_dict().items():
        theirs = table.theirs(name)[0]
        state[theirs.replace("extract.unet.", "extract.unet.base_model.model.")] = value
    sizes = {name: getattr(cfg, name) for name in (*SIZES, "lora_alpha")}
    torch.save({"model": state, "epoch": 0, "args": argparse.Namespace(**sizes)}, tmp_path / "checkpoint_lora0.pth")
    checkpoint = open_checkpoint(str(tmp_path), "--resume")
    assert (checkpoint.options["lora_rank"], checkpoint.options["lora_alpha"]) == (4, 6.0)
    again = tiny_model(cfg, seed=2)
    restore(again, tmp_path / "checkpoint_lora0.pth", cfg)
    assert differences(again.state_dict(), model.state_dict()) == []
    assert not any(part.from_checkpoint for _, part in frozen_parts(again)), (
        "the weights that they adapt are pretrained"
    )
    assert held_parts(without_frozen(checkpoint).weights) == set()
    torch.save({name: value for name, value in state.items() if ".lora_" in name}, tmp_path / "checkpoint_lora0.pth")
    with pytest.raises(UserError, match=r"holds LoRA adapters alone; give the checkpoint of the whole model"):
        open_checkpoint(str(tmp_path), "--resume")


def test_a_conversion_is_kept(
    server: HubServer,
    released: tuple[Path, dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, state = released
    (tmp_path / "org").mkdir()
    shutil.copy(path, tmp_path / "org/released.pth")
    server.add("org/repo", tmp_path / "org")
    first = open_checkpoint("org/repo", "--resume")
    assert first.path.is_relative_to(tmp_path / "assets/t2v-rvos/org--repo/main")
    assert not held_parts(first.weights) and first.frozen["unet"]["source"] == "released.pth"
    assert first.path.stat().st_size < path.stat().st_size / 5
    said = capsys.readouterr().out
    assert said.count("note: ") == 2 and "converted released.pth to" in said and "hf cache rm model/org/repo" in said
    shutil.rmtree(tmp_path / "hub")
    for revision in ("", "@main"):
        assert open_checkpoint(f"hf://org/repo{revision}", "--resume").path == first.path
    assert server.downloaded() == ["org/repo/released.pth"], "the first time only"
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert open_checkpoint("hf://org/repo", "--resume").path == first.path
        assert open_checkpoint("hf://org/repo/released.pth", "--resume").path == first.path
        other = first.path.parents[1] / "e" / "other.safetensors"
        other.parent.mkdir()
        shutil.copy(first.path, other)
        with pytest.raises(UserError, match=r"several checkpoints \(other\.safetensors, released\.safetensors\)"):
            open_checkpoint("hf://org/repo", "--resume")
        other.unlink()
        for source in ("hf://org/repo/other.pth", "hf://org/repo@v2"):
            with pytest.raises(UserError, match="is not in the cache"):
                open_checkpoint(source, "--resume")
    original = open_checkpoint("hf://org/repo", "--resume", original=True)
    assert held_parts(original.weights) >= {"unet", "vae", "sentence_encoder"}
    name = "query_tensors"
    content = {**torch.load(path, weights_only=False), "model": {**state, name: state[name] + 1}}
    torch.save(content, tmp_path / "org/released.pth")
    server.commit = COMMIT[::-1]
    second = open_checkpoint("hf://org/repo", "--resume")
    assert second.path != first.path
    assert torch.equal(second.weights["language_queries.vectors"], first.weights["language_queries.vectors"] + 1)


def test_a_conversion_keeps_frozen_parts_of_its_own(
    server: HubServer, small_stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found when it is loaded: the authors' UNet is not the pretrained one."""
    cfg = tiny_config(small_stack)
    model = tiny_model(cfg, seed=1)
    change_unet(model)
    (tmp_path / "org").mkdir()
    write_authors(tmp_path / "org/released.pth", model, cfg)
    server.add("org/repo", tmp_path / "org")
    for _ in range(2):
        again = tiny_model(cfg, seed=2)
        restore(again, Path("org/repo"), cfg)
        assert differences(again.state_dict(), model.state_dict()) == []
        assert held_parts(open_checkpoint("org/repo", "--resume").weights) == {"unet"}
    assert (
        capsys.readouterr().out.count("was trained with a different UNet than the one loaded, and holds its own") == 1
    )
    assert server.downloaded() == ["org/repo/released.pth"]


def test_a_conversion_that_cannot_be_kept(
    server: HubServer, released: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    server.add("org/repo", released[0].parent)
    (tmp_path / "assets").write_text("a file in place of the folder")
    found = open_checkpoint("hf://org/repo", "--resume")
    assert held_parts(found.weights) and "could not be kept" in found.notes[0]


def test_a_conversion_knows_only_revisions_that_agree(
    server: HubServer,
    released: tuple[Path, dict[str, torch.Tensor]],
    small_stack: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.add("org/repo", released[0].parent)
    cfg = tiny_config(small_stack)
    model = tiny_model(cfg, seed=1)
    change_unet(model)
    before = open_checkpoint("org/repo", "--resume")
    sources = dict.fromkeys(frozen_sources(cfg), "org/stack")
    monkeypatch.setattr(checkpoints, "cached_revision", lambda source: "abc")
    _, notes = load_weights(model, before, sources, ignore_identity=True)
    assert len(notes) == 1 and "different UNet" in notes[0]
    after = open_checkpoint("org/repo", "--resume")
    assert after.frozen["unet"] == before.frozen["unet"]
    assert after.frozen["vae"] == {**before.frozen["vae"], "source": "org/stack", "revision": "abc"}

    def full(path: Path, content: Any) -> None:
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(checkpoints, "cached_revision", lambda source: "def")
    monkeypatch.setattr(checkpoints, "save_weights", full)
    load_weights(model, after, sources, ignore_identity=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "repository", "file", "other", "parts"),
    [
        ("vdit", "buxiangzhiren/VD-IT", "vdit_ytvos", "vdit_refcoco", ("licence: CC BY-NC 4.0", CLIP, ROBERTA, "mit")),
        ("rem", "anuragba/refereverything", "rem_modelscope", "rem_14B_wan", ("licence: CC BY 4.0",)),
    ],
)
def test_without_a_checkpoint(
    server: HubServer,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    repository: str,
    file: str,
    other: str,
    parts: tuple[str, ...],
) -> None:
    """Published weights at toy size: the first run downloads and converts, the second needs neither file nor hub."""
    published = tmp_path / "published"
    shutil.copytree(root / "toy/stack", published / "t2v", ignore=shutil.ignore_patterns("clip", "roberta"))
    for name in ("clip", "roberta"):
        shutil.copytree(root / "toy/stack" / name, published / name)
    serve_parts(server, published)
    flags = ("--to", "authors", "--pretrained", root / "toy/stack")
    bundled = root / f"toy/{model}.safetensors"
    made = run_command(convert_checkpoint.main, bundled, tmp_path / f"authors/{file}.pth", *flags)
    assert made.returncode == 0, made.stderr
    (tmp_path / f"authors/{other}.pth").write_bytes(b"another")
    server.add(repository, tmp_path / "authors")
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(tmp_path / "picture.png")

    def segment(name: str, *words: object) -> tuple[str, bytes]:
        words = (tmp_path / "picture.png", "the dog", "--eval_size", 64, "--device", "cpu", "--weights", model, *words)
        done = run_command(demo.main, *words, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        return done.stdout, (tmp_path / name / "masks/1_the-dog/00000.png").read_bytes()

    hashed: list[int] = []
    monkeypatch.setattr(checkpoints, "part_hash", lambda weights: hashed.append(len(weights)) or part_hash(weights))
    server.cuts = 2
    said, mask = segment("first")
    assert f"using {file}.pth" in said
    downloading = re.findall(r"^note: downloading .*$", said, re.MULTILINE)
    assert len(downloading) == 1, "one note states everything, before it starts"
    assert all(part in downloading[0] for part in (f"{repository} (", f"{T2V} (", *parts))
    assert (CLIP in downloading[0]) == (CLIP in parts), "only what the model reads"
    shutil.rmtree(tmp_path / f"hub/models--{repository.replace('/', '--')}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hashed.clear()
    said, again = segment("second")
    assert again == mask and "downloading" not in said
    assert model == "rem" or not hashed, "the conversion knows the revisions of the frozen parts; REM's UNet is trained"
    said, toy = segment("toy", "--resume", bundled)
    assert toy == mask
    assert load_pretrained(f"hf://{repository}", device="cpu").checkpoint.name == f"{file}.safetensors"


@pytest.fixture(scope="module")
def published(root: Path, tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toy-size folders of the repositories that the commands below name."""
    folder, stack = tmp_path_factory.mktemp("published"), root / "toy/stack"
    shutil.copytree(stack, folder / "t2v", ignore=shutil.ignore_patterns("clip", "roberta"))
    shutil.copytree(tiny_wan, folder / "wan", ignore=shutil.ignore_patterns("roberta"))
    split_weights(folder / "wan")
    for name in ("vdit", "rem"):
        (folder / name).mkdir()
    flags = ("--to", "authors", "--pretrained", stack)
    done = run_command(convert_checkpoint.main, root / "toy/vdit.safetensors", folder / "vdit/vdit.pth", *flags)
    assert done.returncode == 0, done.stderr
    torch.save({"unet": load_file(stack / "unet/diffusion_pytorch_model.safetensors")}, folder / "rem/rem.pth")
    words = (root / "toy/vdit.safetensors", "org/my-model", "--folder", folder / "mine")
    done = run_command(push_to_hub.main, *words)
    assert done.returncode == 0, done.stderr
    frozen = {T2V: folder / "t2v", CLIP: stack / "clip", ROBERTA: stack / "roberta", WAN: folder / "wan"}
    trained = {"buxiangzhiren/VD-IT": "vdit", "anuragba/refereverything": "rem", "org/my-model": "mine"}
    return {**frozen, **{name: folder / inside for name, inside in trained.items()}}


SMALL = ("--eval_size", "64", "--device", "cpu")
TRAIN = ("--device", "cpu", "--max_steps", "1", "--batch_size", "1", "--num_frames", "1", "--sample_every", "0")
HUB_COMMANDS: dict[str, tuple[str, ...]] = {
    'python demo.py video.mp4 "the dog"': (*SMALL, "--out", "./out"),
    'python demo.py video.mp4 "the dog" --resume CHECKPOINT --out out': SMALL,
    "python -m scripts.web_demo --resume CHECKPOINT": (*SMALL, "--port", "0"),
    "python main.py --config configs/vdit_ytvos.yaml --resume hf://org/my-model --eval …": (
        *("--pretrained", T2V, "--ytvos_path", "data", "--output_dir", "./eval"),
        *SMALL,
    ),
    "python inference_ytvos.py --config configs/vdit_ytvos.yaml --resume CHECKPOINT": (
        *("--pretrained", T2V, "--ytvos_path", "data", "--output_dir", "./masks"),
        *SMALL,
    ),
    "sh scripts/dist_train_ytvos_vdit.sh runs/vdit --resume auto": (
        "--ytvos_path",
        "data",
        "--pretrained",
        T2V,
        *TRAIN,
    ),
    "python main.py --config configs/wan_ytvos.yaml --ytvos_path data/ref-youtube-vos --output_dir runs/wan": (
        *("--train_scales", "64", "--crop_scales", "--max_size", "96", "--text_cache", "./text", "--num_workers", "0"),
        *("--eval_size", "64", *TRAIN, *tiny_flags()),
    ),
    "python -m scripts.convert_checkpoint hf://buxiangzhiren/VD-IT vdit.safetensors": ("--stack", "toy/stack"),
    "python -m scripts.convert_checkpoint hf://anuragba/refereverything rem.safetensors": ("--stack", "toy/stack"),
    f"python -m scripts.convert_checkpoint vdit.safetensors vdit.pth --to authors --pretrained {T2V}": (),
}
"""Commands of the pages that download weights, and the flags that make them toy-size."""
PLACES = {
    "configs/vdit_ytvos.yaml": "configs/vdit_toy.yaml",
    "CHECKPOINT": "org/my-model",
    **dict.fromkeys(("runs/vdit", "runs/wan", "out"), "./out"),
}
"""Words of the commands → what stands for them here; files and ``./…`` are in the test's folder."""


@pytest.mark.slow
@pytest.mark.parametrize("command", HUB_COMMANDS)
def test_commands_that_download(
    command: str,
    server: HubServer,
    published: dict[str, Path],
    root: Path,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each command of the pages without network and cache, as the connection breaks off, online, and from the cache."""
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    assert any(command in page.read_text() for page in pages), "no page has this command any more"
    for name, folder in published.items():
        server.add(name, folder, "mit")
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    program, *words = (*shlex.split(command.removesuffix(" …")), *HUB_COMMANDS[command])
    if program == "sh":  # what scripts/launch.sh makes of it
        words = ["main.py", "--config", "configs/vdit_ytvos.yaml", "--output_dir", *words[1:]]
    script = words.pop(0).removesuffix(".py") if words[0] != "-m" else words[1]
    words = words[2:] if words[0] == "-m" else words
    main: Any = import_module(script).main
    places = {**PLACES, **dict.fromkeys(("data", "data/ref-youtube-vos"), str(toy_data))}

    def run(phase: str, offline: bool) -> tuple[CompletedProcess[str], dict[str, bytes]]:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        folder = tmp_path / phase
        folder.mkdir()
        shutil.copy(root / "toy/vdit.safetensors", folder) if "authors" in words else None
        Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(folder / "video.mp4", "png")
        monkeypatch.setattr(web_demo, "serve", lambda *given: _visit(folder, *given))
        before = set(folder.rglob("*"))
        local = [
            str(folder / word) if re.fullmatch(r"(\./)?\w+(\.[a-z]\w*)?", word) and "." in word else word
            for word in (places.get(word, word) for word in words)
        ]
        done = run_command(main, *local)
        made = [path for path in folder.rglob("*") if path.is_file() and path not in before]
        return done, {
            path.relative_to(folder).as_posix(): path.read_bytes() if path.suffix == ".png" else b""
            for path in made
            if "tfevents" not in path.name
        }

    def refused(phase: str, offline: bool, sentence: str) -> None:
        done, made = run(phase, offline)
        assert done.returncode == 2 and re.fullmatch(sentence, done.stderr.splitlines()[-1]), done.stderr
        assert {Path(file).name for file in made} <= {"config.json", "run.json", "inference.json"}, list(made)
        assert "Traceback" not in done.stderr and not list((tmp_path / "hub").rglob("*.incomplete"))

    absent = r"error: .* not in the cache, and the hub cannot be reached; connect to the network once, or (run|give) .*"
    broken = r"error: the download of \S+ from \S+ broke off \(.+\); run the command again, .*"
    refused("without", True, absent)
    server.broken = "/resolve/"  # in the first file
    refused("cut", False, broken)
    if "--stack" not in words:
        server.broken = "model.safetensors"  # in the first weights of the frozen parts
        refused("cut later", False, broken)
    server.broken = ""
    refused("half", True, absent)
    done, made = run("online", False)
    assert done.returncode == 0 and "note: downloading" in done.stdout, done.stderr
    done, again = run("offline", True)
    assert done.returncode == 0 and "note: downloading" not in done.stdout, done.stderr
    assert made and again == made


@contextlib.contextmanager
def _visit(folder: Path, pretrained: Any, segment: Callable[..., Any], options: Any) -> Iterator[str]:
    """In place of the page: one visitor, and Ctrl-C."""
    segment(open_media(folder / "video.mp4"), ["the dog"], folder / "out")
    raise SystemExit
    yield ""


def test_the_page_with_published_weights(cache: Path) -> None:
    """It names their repository and the way to get it, as the demo does."""
    done = run_command(web_demo.main, "--weights", "vdit", "--port", 0)
    said = r"error: hf://buxiangzhiren/VD-IT is not in the cache, .* or run `for repo in .*"
    assert done.returncode == 2 and re.fullmatch(said, done.stderr.strip())


@pytest.mark.slow
def test_the_commands_for_a_machine_without_a_network(
    server: HubServer, published: dict[str, Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the message and of docs/install.md are the same: fill a cache elsewhere, and use it.

    A connection that breaks off leaves nothing that is used, and the same commands then do the rest.
    """
    for name, folder in published.items():
        server.add(name, folder)
    server.repositories[CLIP]["open_clip_model.safetensors"] = published[CLIP] / "config.json"
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(tmp_path / "video.mp4", "png")
    words = (tmp_path / "video.mp4", "the dog", *SMALL, "--out", tmp_path / "out")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = run_command(demo.main, *words)
    said = re.fullmatch(
        r"error: hf://\S+ is not in the cache, .* run `(for .*)` elsewhere, .*`export HF_HUB_CACHE=(\S*)`.*",
        done.stderr.strip(),
    )
    assert done.returncode == 2 and said
    page = " ".join((root / "docs/install.md").read_text().split()).replace(" done HF_HUB", "; done HF_HUB")
    assert f"{said[1]} HF_HUB_CACHE={said[2]} " in page
    relative = os.path.relpath(tmp_path / said[2], root)  # as the command of the message sets it
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", relative)
    with cut_off(server, monkeypatch, "vdit.pth"):
        hf("download", "buxiangzhiren/VD-IT", "--cache-dir", tmp_path / said[2])
    assert run_command(demo.main, *words).stderr == done.stderr
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    places = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "PATH": path}
    fetched = subprocess.run(
        ["bash", "-ec", said[1]], cwd=tmp_path, env={**os.environ, **places}, capture_output=True, timeout=100
    )
    assert fetched.returncode == 0, fetched.stderr
    assert not list((tmp_path / said[2]).rglob("open_clip*")) and server.requests
    server.requests.clear()
    done = run_command(demo.main, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/masks/1_the-dog/00000.png").is_file() and server.requests == []


def hf(*words: object) -> None:
    """The command ``hf``, in this process."""
    with mock.patch.object(sys, "argv", ["hf", *map(str, words)]), pytest.raises(SystemExit) as end:
        hf_cli.app(windows_expand_args=False)
    assert not end.value.code


@contextlib.contextmanager
def cut_off(server: HubServer, monkeypatch: pytest.MonkeyPatch, part: str) -> Iterator[None]:
    """Transfers of files with this part in their path break off, and the block fails of it."""
    with monkeypatch.context() as patch, pytest.raises(httpx2.RemoteProtocolError):
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(time, "sleep", lambda seconds: None)  # between attempts
        patch.setattr(server, "broken", part)
        yield


def test_frozen_parts_in_a_folder(
    server: HubServer, parts: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``hf download REPO --local-dir FOLDER`` of docs/install.md, and FOLDER as ``--pretrained``."""
    assert "`hf download REPO --local-dir FOLDER`" in (root / "docs/install.md").read_text()
    words, folder = ("download", T2V, "--local-dir", tmp_path / "stack"), tmp_path / "stack"
    with cut_off(server, monkeypatch, "unet/diffusion_pytorch_model"):
        hf(*words)
    with pytest.raises(UserError, match=r"the UNet in .* does not hold all weights .*; give a complete local folder"):
        load_whole_stack(str(folder))
    hf(*words)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hf(*words)
    server.requests.clear()
    load_whole_stack(str(folder))
    assert server.requests == []


def test_a_dataset_of_the_hub(server: HubServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MeViS, by the commands of docs/training.md."""
    made = write_toy_mevis(tmp_path / "made", num_train=1, num_valid_u=1, num_valid=1, frames=4, no_target=1)
    for split in made.iterdir():
        with tarfile.open(split / "JPEGImages.tar", "w") as archive:
            archive.add(split / "JPEGImages", "JPEGImages")
        shutil.rmtree(split / "JPEGImages")
        (split / "meta_expressions.json").rename(split / "meta_expressions_v2.json")
    server.add("datasets/FudanCVL/MeViSv2", made)
    page = (root / "docs/training.md").read_text().replace("data/mevis", str(tmp_path / "mevis"))
    download, unpack, check = (
        shlex.split(next(line for line in page.splitlines() if line.startswith(words)), comments=True)
        for words in ("hf download FudanCVL", "tar -xf", "python -m scripts.check_data mevis")
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LocalEntryNotFoundError):
        hf(*download[1:])
    with cut_off(server, monkeypatch, "train/mask_dict.json"):
        hf(*download[1:])
    done = run_command(check_data.main, *check[3:], "--workers", 1)
    assert done.returncode == 2 and "download or extract the files named above" in done.stdout
    assert not (tmp_path / "mevis/train/mask_dict.json").exists()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hf(*download[1:])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hf(*download[1:])
    for split in ("train", "valid_u", "valid"):
        subprocess.run([word.replace("mevis/train", f"mevis/{split}") for word in unpack], check=True)
    done = run_command(check_data.main, *check[3:], "--workers", 1)
    assert done.returncode == 0 and "nothing is missing or broken" in done.stdout, done.stdout


def test_a_file_by_curl(server: HubServer, root: Path, tmp_path: Path) -> None:
    """The command of docs/checkpoints.md continues where the connection broke off."""
    (command,) = re.findall(r"`(curl .*?)`", (root / "docs/checkpoints.md").read_text())
    command = command.replace("https://huggingface.co/org/repo", f"{server.address}/org/my-model")
    words = shlex.split(command.replace("FILE", "weights.safetensors"))
    (tmp_path / "served").mkdir()
    own = Path(shutil.copy(root / "toy/vdit.safetensors", tmp_path / "served/weights.safetensors"))
    server.add("org/my-model", own.parent)
    server.cuts = 1
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 18
    with pytest.raises(UserError, match=r"weights\.safetensors is not a readable checkpoint; it may be truncated"):
        open_checkpoint(str(tmp_path / "weights.safetensors"), "--resume")
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 0
    assert server.downloaded()[-1].startswith("org/my-model/weights.safetensors from ")
    assert (tmp_path / "weights.safetensors").read_bytes() == own.read_bytes()


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


def test_a_card_of_an_authors_checkpoint_names_the_hub(
    released: tuple[Path, dict[str, torch.Tensor]], small_stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not the file that its frozen parts were in."""
    monkeypatch.setattr(
        push_to_hub, "convert", lambda words: convert_checkpoint.main([*words, "--stack", str(small_stack)])
    )
    done = run_command(push_to_hub.main, released[0], "me/x", "--folder", tmp_path / "look")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "look/README.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| (.+?) \| `[0-9a-f]{16}` \|$", card, re.MULTILINE))
    assert rows == {
        **dict.fromkeys(("unet", "vae", "text_encoder"), T2V),
        **{"image_encoder": CLIP, "sentence_encoder": ROBERTA},
    }


@pytest.mark.slow
def test_what_is_pushed_is_loaded(
    server: HubServer, published: dict[str, Path], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Push over HTTP, then run the lines of docs/checkpoints.md online and offline."""
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    server.broken = "/commit/"
    done = run_command(push_to_hub.main, root / "toy/vdit.safetensors", "org/my-model")
    assert done.returncode == 2 and not server.uploaded
    assert re.fullmatch(r"error: the hub cannot be reached \(RemoteProtocolError\); .*", done.stderr.splitlines()[-1])
    server.broken = ""
    done = run_command(push_to_hub.main, root / "toy/vdit.safetensors", "org/my-model")
    assert done.returncode == 0 and "https://huggingface.co/org/my-model" in done.stdout, done.stderr
    served = tmp_path / "served"
    for name, content in server.uploaded.items():
        (served / name).parent.mkdir(parents=True, exist_ok=True)
        (served / name).write_bytes(content)
    assert sorted(server.uploaded) == ["org/my-model/README.md", "org/my-model/weights.safetensors"]
    for name, folder in {**published, "org/my-model": served / "org/my-model"}.items():
        server.add(name, folder)
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(tmp_path / "video.mp4", "png")
    page = (root / "docs/checkpoints.md").read_text()
    lines = page[page.index("from models import load_pretrained") :].partition("```")[0]
    absent = "org/my-model is not in the cache, .* `hf download org/my-model --local-dir my-model`"
    for offline, server.broken, said in (
        *((True, "", absent), (False, "/resolve/", "from org/my-model broke off"), (True, "", absent)),
        *((False, "model.safetensors", f"from {T2V} broke off"), (False, "", ""), (True, "", "")),
    ):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        names: dict[str, Any] = {}
        with contextlib.chdir(tmp_path), pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
            exec(lines, names)
            assert names["result"]["the dog"].masks.shape == (1, 64, 96)
    done = run_command(push_to_hub.main, root / "toy/vdit.safetensors", "org/my-model")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: the hub cannot be reached (")


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
