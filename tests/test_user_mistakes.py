"""What new users got wrong when they tried the project: each is told in one sentence that mends it."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets import build_dataset, build_evaluator, build_scorer, list_videos
from datasets.checks import check
from datasets.davis import convert_davis
from datasets.registry import DATASETS, load_config
from demo import main as demo_main
from demo import require_free
from engine import build_record
from models import inference, load_pretrained
from models.checkpoints import open_checkpoint
from models.inference import build_for_inference
from scripts import baselines, check_data, convert_checkpoint, eval_jf, make_toy_data
from scripts.baselines import run_largest
from tests.commands import run_command
from tests.conftest import ROOT
from tests.jf_tools import write_ytvos
from tests.silent_wrongs import folders_of_datasets
from tests.true_formats import write_toy_davis
from util import hub
from util.config import Config, config_dict
from util.errors import UserError
from util.video import Excerpt, open_media


@pytest.mark.parametrize("option", [{"hidden_dim": 64}, {"noise": "none"}])
def test_a_checkpoint_of_other_options_is_refused_before_anything_is_loaded(
    tiny_checkpoint: Path, tiny_config: list[str], monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    built: list[Config] = []
    monkeypatch.setattr(inference, "build_model", built.append)
    flags = [word for name, value in option.items() for word in (f"--{name}", str(value))]
    cfg = load_config([*tiny_config, *flags], "")
    with pytest.raises(UserError, match=rf"was made with {next(iter(option))} .*, but this configuration has"):
        build_for_inference(cfg, open_checkpoint(str(tiny_checkpoint), "--resume"), torch.device("cpu"))
    assert not built


def test_a_new_run_may_change_the_function(tiny_checkpoint: Path, tiny_config: list[str]) -> None:
    checkpoint, cfg = (
        open_checkpoint(str(tiny_checkpoint), "--resume"),
        load_config([*tiny_config, "--noise", "none"], ""),
    )
    checkpoint.require_options(config_dict(cfg), new_run=True)
    with pytest.raises(UserError, match="was made with noise predicted"):
        checkpoint.require_options(config_dict(cfg))


def test_an_unknown_option_of_the_library(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"unknown option 'devise'; did you mean 'device'\?"):
        load_pretrained(tiny_checkpoint, devise="cpu")
    with pytest.raises(UserError, match=r"unknown option 'xyzzy'; main\.py --help lists the options"):
        load_pretrained(tiny_checkpoint, xyzzy=1)


@pytest.mark.parametrize("made", [True, False])
def test_a_run_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    """``runs/vdit`` could be a repository of the hub, but not where there is a folder ``runs``."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def away(repo: str, **options: Any) -> None:
        asked.append(repo)
        raise OSError("no network")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=away))
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


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_dataset_names_its_flag(name: str, tmp_path: Path) -> None:
    flag = DATASETS[name].root
    for folder, state in ((tmp_path / "none", "is missing"), (Path(__file__), "is not a folder")):
        cfg = Config(dataset_file=name, **{flag: str(folder)})
        uses = (lambda cfg: build_dataset(cfg, "train"), *(
            (list_videos, build_scorer) if DATASETS[name].masks else (build_evaluator,)
        ))  # fmt: skip
        for use in uses:
            with pytest.raises(UserError, match=rf"{folder.name} {state}; name the folder of .* by --{flag} "):
                use(cfg)


def test_a_folder_too_deep_or_too_high(toy_data: Path, tmp_path: Path) -> None:
    for given in (toy_data / "train", toy_data / "meta_expressions"):
        assert check("ytvos", given).elsewhere == toy_data
        told = run_command(check_data.main, "ytvos", given)
        assert told.returncode == 2
        assert told.stdout.endswith(f"what to do: {toy_data} looks like the folder of ytvos; name that one\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy").symlink_to(toy_data)
    assert check("ytvos", tmp_path / "data").elsewhere == tmp_path / "data" / "toy"
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    for given in (toy_data, tmp_path / "empty" / "deep"):
        assert check("ytvos", given).elsewhere is None


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (eval_jf, ["--gtt", "x"], "unknown flag --gtt; did you mean --gt?"),
        (check_data, ["ytvos"], "the following arguments are required: root; see --help"),
        (check_data, ["ytvos", "a", "b"], "unexpected argument 'b'; see --help"),
        (check_data, ["ytvoss", "a"], "dataset: invalid choice: 'ytvoss'"),
        (baselines, ["swap", "--outputs", "x"], "unknown flag --outputs; did you mean --output?"),
        (make_toy_data, ["--train-videos", "3"], "unknown flag --train-videos; did you mean --train_videos?"),
    ],
)
def test_every_command_tells_a_mistyped_flag(script: Any, words: list[str], said: str) -> None:
    done = run_command(script.main, *words)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_every_script_has_the_parser_that_does() -> None:
    for path in (ROOT / "scripts").glob("*.py"):
        assert "argparse.ArgumentParser(" not in path.read_text("utf-8"), path


def test_the_demo_with_another_models_configuration(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="is a checkpoint of the model 'vdit', and the configuration builds 'hcd'"):
        load_pretrained(tiny_checkpoint, model="hcd")


def test_a_checkpoint_is_not_converted_onto_itself(tmp_path: Path, root: Path) -> None:
    weights = shutil.copy(root / "toy" / "vdit.safetensors", tmp_path / "w.safetensors")
    before = Path(weights).read_bytes()
    (tmp_path / "link.safetensors").symlink_to(weights)
    for target in (weights, tmp_path / "link.safetensors"):
        done = run_command(convert_checkpoint.main, weights, target)
        assert (
            done.returncode == 2
            and "OUT and IN are the same file" in done.stderr
            and Path(weights).read_bytes() == before
        )


def test_another_datasets_folder(toy_data: Path, tmp_path: Path) -> None:
    """Neither a conversion nor inference writes into it."""
    write_toy_davis(tmp_path / "raw", num_train=1, num_valid=1, frames=4, height=48, width=64)
    folder = Path(shutil.copytree(toy_data, tmp_path / "toy"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"toy holds another dataset, with the video .*; choose another --output_dir"):
        convert_davis(tmp_path / "raw", folder)
    with pytest.raises(UserError, match="toy holds a dataset; choose another --output_dir"):
        build_record(Config(ytvos_path=str(toy_data), output_dir=str(folder)), None, torch.device("cpu"))
    (folder / "truth" / "Annotations" / "a").mkdir(parents=True)  # ground truth alone
    before = sorted(folder.rglob("*"))
    for inside, said in (
        ("valid", "valid holds a dataset"),
        ("valid/Annotations/new", "valid holds a dataset"),
        ("valid/JPEGImages", "valid holds a dataset"),
        ("truth", "truth/Annotations holds masks that no inference run has recorded"),
    ):
        with pytest.raises(UserError, match=f"{said}.*; choose another --output_dir"):
            build_record(Config(ytvos_path=str(toy_data), output_dir=str(folder / inside)), None, torch.device("cpu"))
        with pytest.raises(UserError, match="choose another --out"):
            require_free(folder / inside, force=True)
    masks, listed = folder / "valid" / "Annotations", folder / "meta_expressions" / "valid" / "meta_expressions.json"
    with pytest.raises(UserError, match="valid holds a dataset; choose another --output_dir"):
        run_largest(masks, listed, folder / "valid")
    assert sorted(folder.rglob("*")) == before
    for _ in range(2):
        convert_davis(tmp_path / "raw", tmp_path / "davis")  # its own, again
    with pytest.raises(UserError, match="raw/DAVIS is the folder DAVIS itself; give the one that holds it"):
        convert_davis(tmp_path / "raw" / "DAVIS", tmp_path / "other")


def test_every_folder_of_every_dataset(tmp_path: Path) -> None:
    for _, refuses in folders_of_datasets(tmp_path):
        refuses()


def test_videos_that_are_none(toy_data: Path) -> None:
    frames = toy_data / "valid" / "JPEGImages"
    first = sorted(path.name for path in frames.iterdir())[0]
    for video, said in (
        (frames, f"without an image; give a folder in it, such as {first}"),
        ("https://example.com/a.mp4", "is a web address"),
    ):
        with pytest.raises(UserError, match=said):
            open_media(video)
    with pytest.raises(UserError, match=r"no frame from 100 s on; it lasts 0\.\d+ s, so choose an"):
        open_media(frames / first, Excerpt(Fraction(100)))


def test_auto_is_for_training() -> None:
    with pytest.raises(UserError, match="--resume auto works for training only; name a checkpoint"):
        open_checkpoint("auto", "--resume")


def test_a_split_in_place_of_its_masks(tmp_path: Path) -> None:
    root = write_ytvos(tmp_path)
    done = run_command(eval_jf.main, "--gt", root / "valid", "--pred", root / "Annotations", "--workers", 1)
    assert done.returncode == 0 and f"ground truth: {root / 'valid' / 'Annotations'}\n" in done.stdout, done.stderr
