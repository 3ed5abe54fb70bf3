"""demo.py from the command line: with the carried weights on a generated video; mistakes, each told in one sentence."""

from __future__ import annotations

import json
import signal
from fractions import Fraction
from pathlib import Path

import pytest

import demo
from models import video_folder
from tests.commands import run_command
from tests.media_tools import write_film
from util.demo_options import read_command
from util.errors import UserError
from util.media_reader import open_media
from util.media_writer import open_video

WEIGHTS = "toy/vdit.safetensors"


@pytest.fixture
def toy_video(toy_data: Path, tmp_path: Path) -> Path:
    """A generated video of moving shapes, as H.264."""
    media = open_media(sorted((toy_data / "valid" / "JPEGImages").iterdir())[0], fps=Fraction(6))
    with open_video(tmp_path / "toy vidéo.mp4", media.rate) as video:
        for frame in media.frames():
            video.write(frame.image, frame.time, frame.duration)
    return tmp_path / "toy vidéo.mp4"


@pytest.mark.slow
def test_from_end_to_end(toy_video: Path, tmp_path: Path):
    """A score that no sentence reaches: the second sentence's masks are empty; the first one's run has none."""
    words = [toy_video, "a blue ring", "the thing", "--resume", WEIGHTS, "--device", "cpu"]
    done = run_command(demo.main, *words, "--out", tmp_path / "out", "--window", "4", "--overlap", "2", "--save_prob")
    assert done.returncode == 0, done.stderr
    frames = open_media(toy_video).count
    assert frames == 5
    content = json.loads((tmp_path / "out" / "masks.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in content["categories"]] == ["a blue ring", "the thing"]
    assert len(content["annotations"]) == 2 * frames and any(entry["area"] for entry in content["annotations"])
    assert len(list((tmp_path / "out" / "masks" / "2_the-thing").iterdir())) == frames
    assert len(list((tmp_path / "out" / "probabilities" / "1_a-blue-ring").iterdir())) == frames
    assert len(list(open_media(tmp_path / "out" / "overlay.mp4").frames())) == frames
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    assert f"wrote {frames} frames with 2 sentences" in done.stdout

    none = run_command(demo.main, *words, "--out", tmp_path / "none", "--score_threshold", "1")
    assert none.returncode == 0, none.stderr
    assert none.stdout.count("below the score threshold of 1: it names nothing here, its masks are empty") == 2
    content = json.loads((tmp_path / "none" / "masks.json").read_text(encoding="utf-8"))
    assert not any(entry["area"] for entry in content["annotations"])


@pytest.mark.slow
def test_sigterm_leaves_nothing(toy_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_folder.VideoSegmenter, "_finish", lambda *_: signal.raise_signal(signal.SIGTERM))
    done = run_command(demo.main, toy_video, "a blue ring", "--resume", WEIGHTS, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (143, "")
    assert [path.name for path in tmp_path.iterdir()] == [toy_video.name]


MISTAKES = {
    "zero bytes": (["{tmp}/zero.mp4", "a dog"], "zero.mp4 is empty (0 bytes)"),
    "text": (["{tmp}/text.mp4", "a dog"], "cannot read"),
    "cut off": (["{tmp}/cut.mp4", "a dog"], "cut.mp4 has no pictures: it is sound alone, damaged or cut off"),
    "no such file": (["{tmp}/none.mp4", "a dog"], "none.mp4 does not exist"),
    "no sentence": (["{tmp}/good.mp4"], "SENTENCE"),
    "empty sentence": (["{tmp}/good.mp4", "a dog", "  "], "sentence 2 is empty"),
    "no checkpoint": (["{tmp}/good.mp4", "a dog", "--resume", ""], "no checkpoint is given"),
    "missing checkpoint": (["{tmp}/good.mp4", "a dog", "--resume", "{tmp}/no.pth"], "no.pth does not exist"),
    "mistyped flag": (["{tmp}/good.mp4", "a dog", "--treshold", "0.5"], "unknown flag --treshold; did you mean --thre"),
    "mistyped flag of the demo": (["{tmp}/good.mp4", "a dog", "--strid", "2"], "did you mean --stride?"),
    "a flag of training": (["{tmp}/good.mp4", "a dog", "--epochs", "2"], "unknown flag --epochs"),
    "wrong time": (["{tmp}/good.mp4", "a dog", "--start", "soon"], "--start must be a time in seconds"),
    "late start": (["{tmp}/good.mp4", "a dog", "--start", "1:00"], "no frame from --start 60 s on"),
    "stride": (["{tmp}/good.mp4", "a dog", "--stride", "0"], "--stride must be a whole number of at least 1"),
    "overlap": (["{tmp}/good.mp4", "a dog", "--window", "4", "--overlap", "4"], "--overlap must be"),
    "taken folder": (["{tmp}/good.mp4", "a dog", "--out", "{tmp}"], "is not empty and holds no result of the demo"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_sentence_and_status_2(tmp_path: Path, kind: str):
    write_film(tmp_path / "good.mp4")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello world\n" * 99)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:1200])
    words, sentence = MISTAKES[kind]
    defaults = ["--resume", WEIGHTS, "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = run_command(demo.main, *defaults, *(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_words_and_flags_in_any_order():
    video, sentences, options, given = read_command(
        ["--stride", "2", "a.mp4", " the dog  that ", "--resume", "x.pth", "b", "--save_prob", "--threshold", "0.4"]
    )
    assert (str(video), sentences) == ("a.mp4", ["the dog that", "b"])
    assert options.stride == 2 and options.save_prob and str(options.folder(video)) == "runs/demo/a"
    assert given == {"resume": "x.pth", "threshold": 0.4}


def test_options_of_a_file_and_of_the_command_line(root: Path):
    config = str(root / "configs" / "vdit_toy.yaml")
    _, _, _, given = read_command(["a.mp4", "b", "--config", config, "--eval_size", "32"])
    assert given["eval_size"] == 32 and given["hidden_dim"] == 96


def test_help_shows_what_matters(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        read_command(["--help"])
    text = capsys.readouterr().out
    assert all(
        f"--{name}" in text for name in ("out", "start", "save_prob", "threshold", "pretrained", "device", "seed")
    )
    assert "--epochs" not in text and "--set_cost_class" not in text and "VIDEO SENTENCE [SENTENCE ...]" in text


def test_a_sentence_that_looks_like_a_flag():
    with pytest.raises(UserError, match="unknown flag --the"):
        read_command(["a.mp4", "b", "--the", "dog"])
