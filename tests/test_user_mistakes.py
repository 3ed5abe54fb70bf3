"""What new users got wrong when they tried the project: each is told in one sentence that mends it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets import build_dataset, build_evaluator, build_scorer, list_videos
from demo import main as demo_main
from models import build_model, load_pretrained, prediction
from models.diffusion import stack
from models.loading import check_options, open_checkpoint
from models.prediction import load_for_inference
from scripts import eval_jf
from scripts.check_data import check
from tests.commands import run_command
from tests.jf_tools import write_ytvos
from tests.tiny_models import model_config
from util import hub
from util.benchmarks import EVAL_SPLITS, VIDEO_SETS, folder_option
from util.config import Config, load_config
from util.errors import UserError
from util.mask_layouts import LAYOUTS


@pytest.mark.parametrize("option", [{"hidden_dim": 64}, {"noise": "none"}])
def test_a_checkpoint_of_other_options_is_refused_before_anything_is_loaded(
    tiny_checkpoint: Path, tiny_config: list[str], monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    built: list[Config] = []
    monkeypatch.setattr(prediction, "build_model", built.append)
    flags = [word for name, value in option.items() for word in (f"--{name}", str(value))]
    cfg = load_config([*tiny_config, *flags], "")
    with pytest.raises(UserError, match=rf"another configuration: {next(iter(option))} .*, and here it is"):
        load_for_inference(cfg, open_checkpoint(str(tiny_checkpoint), "--resume"), torch.device("cpu"))
    assert not built


def test_a_new_run_may_change_the_function(tiny_checkpoint: Path, tiny_config: list[str]) -> None:
    checkpoint, cfg = (
        open_checkpoint(str(tiny_checkpoint), "--resume"),
        load_config([*tiny_config, "--noise", "none"], ""),
    )
    check_options(checkpoint, cfg, fresh=True)
    with pytest.raises(UserError, match="another configuration: noise predicted"):
        check_options(checkpoint, cfg)


def test_an_unknown_option_of_the_library(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"unknown option 'devise'; did you mean 'device'\?"):
        load_pretrained(tiny_checkpoint, devise="cpu")


@pytest.mark.parametrize("made", [True, False])
def test_a_run_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    """``runs/vdit`` could be a repository of the hub, but not where there is a folder ``runs``."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def away(repo: str, revision: str | None) -> list[str]:
        asked.append(repo)
        raise OSError("no network")

    monkeypatch.setattr(hub, "_list_files", away)
    said = "no file or folder runs/vdit here, and on the hub: hf://runs/vdit is not in the cache"
    if made:
        (tmp_path / "runs").mkdir()
        said = "the checkpoint runs/vdit does not exist"
    with pytest.raises(UserError, match=said):
        load_pretrained("runs/vdit")
    assert asked == ([] if made else ["runs/vdit"])


def test_the_demos_name_for_the_output_folder() -> None:
    done = run_command(demo_main, "a.mp4", "a dog", "--output_dir", "out")
    assert (done.returncode, done.stderr) == (2, "error: unknown flag --output_dir; did you mean --out?\n")


def test_the_output_folder_in_place_of_its_masks(tmp_path: Path) -> None:
    """Inference's folder has pictures and records, too."""
    root = write_ytvos(tmp_path)
    shutil.copytree(root / "Annotations", root / "visualize")
    done = run_command(eval_jf.main, "--gt", root / "valid" / "Annotations", "--pred", root, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert f"predictions: {root / 'Annotations'}\ntask: expressions (guessed" in done.stdout


@pytest.mark.parametrize("name", EVAL_SPLITS)
def test_a_missing_dataset_names_its_flag(name: str, tmp_path: Path) -> None:
    flag = folder_option(name)
    for folder, state in ((tmp_path / "none", "is missing"), (Path(__file__), "is not a folder")):
        cfg = Config(dataset_file=name, **{flag: str(folder)})
        uses = (lambda cfg: build_dataset(cfg, "train"), *(
            (list_videos, build_scorer) if name in VIDEO_SETS else (build_evaluator,)
        ))  # fmt: skip
        for use in uses:
            with pytest.raises(UserError, match=rf"{folder.name} {state}; name the folder of .* by --{flag} "):
                use(cfg)


def test_a_folder_too_deep_or_too_high(toy_data: Path, tmp_path: Path) -> None:
    for given in (toy_data / "train", toy_data / "meta_expressions"):
        notes = check("ytvos", given).notes
        assert f"{toy_data} looks like the folder of ytvos; name that one" in notes
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy").symlink_to(toy_data)
    assert f"{tmp_path / 'data' / 'toy'} looks like" in " ".join(check("ytvos", tmp_path / "data").notes)
    assert not any("looks like" in note for note in check("ytvos", toy_data).notes)
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    assert not any("looks like" in note for note in check("ytvos", tmp_path / "empty" / "deep").notes)


def test_every_set_of_videos_has_a_layout_of_masks() -> None:
    assert set(LAYOUTS) == set(VIDEO_SETS) <= set(EVAL_SPLITS)


class Hub:
    """A hub that answers, or not."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked = error, 0

    def model_info(self, repo: str, timeout: float) -> SimpleNamespace:
        self.asked += 1
        if self.error:
            raise self.error
        return SimpleNamespace()


@pytest.mark.parametrize(("cached", "error"), [(True, OSError("away")), (False, OSError("away")), (False, None)])
def test_a_hub_that_is_away_is_asked_once(
    cached: bool, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its cache is used, or one sentence says that there is none."""
    asked = Hub(error)
    monkeypatch.setattr(hub, "HfApi", lambda: asked)
    monkeypatch.setattr(hub, "cached_revision", lambda repo, file: "0123" if cached else None)
    if error and not cached:
        with pytest.raises(
            UserError, match=r"org/stack is not in the cache, and the hub cannot be reached.*--pretrained"
        ):
            hub.only_cached("org/stack", "unet/config.json", "--pretrained")
    else:
        assert hub.only_cached("org/stack", "unet/config.json", "--pretrained") is cached
    assert asked.asked == 1


def test_a_stack_in_the_cache_is_loaded_without_the_network(tiny_stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library is told to look nowhere else."""
    calls: list[dict[str, Any]] = []

    def load(what: str, source: Any, load: Any, **options: Any) -> Any:
        calls.append(source.options)
        raise UserError(what)

    monkeypatch.setattr(stack, "only_cached", lambda *_: True)
    monkeypatch.setattr(stack, "_part", load)
    with pytest.raises(UserError, match="sentence encoder"):
        build_model(model_config(Path("org/stack"), text_encoder="org/words"))
    assert calls == [{"local_files_only": True}]
