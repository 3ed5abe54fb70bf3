"""Ref-DAVIS17's protocol, by hand and on real video: four annotations and their mean, matched and fixed identities."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import inference_davis
import main
from datasets.predictions import write_index_mask
from datasets.scoring import score_davis, score_ref_davis, video_counts, video_metrics
from scripts import eval_jf, prepare_data
from util.errors import UserError

HEIGHT, WIDTH, FRAMES = 60, 80, 4
BOXES = {1: (slice(10, 30), slice(10, 30)), 2: (slice(10, 30), slice(50, 70)), 3: (slice(40, 55), slice(30, 50))}


def ids(*objects: int, renamed: dict[int, int] | None = None) -> np.ndarray:
    plane = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in objects:
        plane[BOXES[number]] = (renamed or {}).get(number, number)
    return plane


def write(folder: Path, planes: list[np.ndarray]) -> None:
    for number, plane in enumerate(planes):
        write_index_mask(folder / f"{number:05d}.png", plane)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truth: in *a*, object 3 appears too late to count; in *b*, object 1 appears late and counts, as ids go to 2."""
    gt, pred = tmp_path / "valid" / "Annotations", tmp_path / "pred"
    a = [ids(1, 2), ids(1, 2), ids(1, 2, 3), ids(1, 2, 3)]
    b = [ids(2), ids(2), ids(1, 2), ids(1, 2)]
    write(gt / "a", a)
    write(gt / "b", b)
    write(pred / "anno_0" / "a", a)
    write(pred / "anno_0" / "b", [ids(1, 2)] * FRAMES)  # object 1 in two frames too many
    write(pred / "anno_1" / "a", [ids(1, 2, renamed={1: 2, 2: 1})] * FRAMES)  # swapped
    write(pred / "anno_1" / "b", b)
    write(pred / "anno_2" / "a", [ids(1)] * FRAMES)  # nothing for object 2
    write(pred / "anno_2" / "b", b)
    write(pred / "anno_3" / "a", [ids()] * FRAMES)  # nothing at all
    write(pred / "anno_3" / "b", [ids()] * FRAMES)
    return gt, pred


# Means over the objects a_1, a_2, b_1, b_2, of J and F alike. Where nothing is shown and nothing predicted, both are 1:
# b_1 has ½ in annotations 0 and 3, also without the first and last frame.
MATCHED = [(1 + 1 + 0.5 + 1) / 4, 1.0, (1 + 0 + 1 + 1) / 4, (0 + 0 + 0.5 + 0) / 4]
FIXED = [(1 + 1 + 0.5 + 1) / 4, (0 + 0 + 1 + 1) / 4, (1 + 0 + 1 + 1) / 4, (0 + 0 + 0.5 + 0) / 4]


def test_four_annotations_and_their_mean(folders: tuple[Path, Path]) -> None:
    scores = score_ref_davis(*folders)
    for name, expected in (("matched", MATCHED), ("fixed", FIXED)):
        for key in ("JM", "FM", "J&F"):
            assert [row[key] for row in scores[name]["annotations"]] == pytest.approx(expected, abs=1e-12)
            assert scores[name]["mean"][key] == pytest.approx(sum(expected) / 4, abs=1e-12)


def test_matching_hides_what_fixed_identities_show(folders: tuple[Path, Path]) -> None:
    scores = score_ref_davis(*folders)
    assert scores["matched"]["details"][1]["assignment"]["a"] == [2, 1]
    assert scores["matched"]["details"][1]["per_object"]["a_1"]["JM"] == 1
    assert scores["fixed"]["details"][1]["per_object"]["a_1"]["JM"] == 0


def test_an_object_that_appears_late(folders: tuple[Path, Path]) -> None:
    scores = score_ref_davis(*folders)
    detail = scores["matched"]["details"][0]
    assert set(detail["per_object"]) == {"a_1", "a_2", "b_1", "b_2"}
    assert detail["per_frame"]["b"]["J"][0] == [0, 0, 1, 1]
    assert scores["fixed"]["details"][0]["per_frame"]["b"]["J"][0] == [0, 1], "without the first and the last frame"
    with pytest.raises(UserError, match="holds the id 3, but the sequence has 2 objects"):
        score_davis(folders[0], folders[1] / "anno_0", "semi-supervised")


def test_metrics_and_counts(folders: tuple[Path, Path]) -> None:
    scores = score_ref_davis(*folders)
    metrics = video_metrics(scores)
    assert metrics["J&F"] == metrics["J"] == metrics["F"] == metrics["matched.J&F"] == pytest.approx(68.75)
    assert metrics["fixed.J&F"] == pytest.approx(56.25)
    assert [metrics[f"fixed.anno_{a}.F"] for a in range(4)] == pytest.approx([100 * value for value in FIXED])
    assert metrics["matched.anno_1.J_recall"] == 100 and metrics["matched.anno_1.J_decay"] == 0
    assert video_counts(scores) == {"videos": 2, "objects": 4, "annotations": 4}


def test_the_command(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "scores.json"
    options = ["--gt", str(folders[0]), "--pred", str(folders[1]), "--json", str(report)]
    eval_jf.main([*options, "--workers", "2"])
    lines = [" ".join(line.split()[:3]) for line in capsys.readouterr().out.splitlines()]
    assert "task: ref-davis (guessed" in lines
    assert [line for line in lines if line.startswith("annotation")] == [
        *(f"annotation {a} {100 * value:.1f}" for a, value in enumerate(MATCHED)),
        *(f"annotation {a} {100 * value:.1f}" for a, value in enumerate(FIXED)),
    ]
    assert "mean 68.8 68.8" in lines and "mean 56.2 56.2" in lines
    assert json.loads(report.read_text()) == score_ref_davis(*folders)


def test_the_command_scores_the_videos_with_expressions(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "meta_expressions" / "valid" / "meta_expressions.json"
    path.parent.mkdir(parents=True)
    videos = {
        "b": {"frames": ["00000"], "expressions": {"0": {"exp": "it"}}},
        "a": {"frames": ["00000"], "expressions": {}},
    }
    path.write_text(json.dumps({"videos": videos}))
    shutil.rmtree(folders[1] / "anno_0" / "a")
    report = tmp_path / "scores.json"
    options = ["--gt", str(folders[0]), "--pred", str(folders[1]), "--workers", "1", "--json", str(report)]
    eval_jf.main(options)
    assert list(json.loads(report.read_text())["fixed"]["details"][0]["per_frame"]) == ["b"]
    (tmp_path / "names.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"anno_0/a/00000\.png is missing \(and 5 more\)"):
        eval_jf.main([*options, "--sequences", str(tmp_path / "names.txt")])


def test_a_missing_annotation(folders: tuple[Path, Path]) -> None:
    shutil.rmtree(folders[1] / "anno_2")
    with pytest.raises(UserError, match="anno_2 is missing; it should hold the predictions"):
        score_ref_davis(*folders)


# --- real video


@pytest.fixture(scope="module")
def mini_davis(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The developers' real video, converted by the command."""
    root = tmp_path_factory.mktemp("mini_davis") / "ref-davis"
    prepare_data.main(["davis", "--davis_root", str(shared / "data" / "mini_davis"), "--output_dir", str(root)])
    return root


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_mini_davis_with_the_truth_as_prediction(mini_davis: Path, tmp_path: Path) -> None:
    """All is right but for annotation 1, where the two objects of a video are swapped."""
    gt = mini_davis / "valid" / "Annotations"
    for path in gt.glob("*/*.png"):
        truth = read(path)
        swapped = np.select([truth == 1, truth == 2], [2, 1], 0).astype(np.uint8)
        for a in range(4):
            name = tmp_path / f"anno_{a}" / path.parent.name / path.name
            write_index_mask(name, swapped if a == 1 and path.parent.name == "motocross-jump" else truth % 255)
    scores = score_ref_davis(gt, tmp_path)
    assert video_counts(scores) == {"videos": 3, "objects": 4, "annotations": 4}
    assert [row["J&F"] for row in scores["matched"]["annotations"]] == [1, 1, 1, 1]
    fixed = [row["J&F"] for row in scores["fixed"]["annotations"]]
    assert fixed[0] == fixed[2] == fixed[3] == 1 and 0.5 <= fixed[1] < 0.75


@pytest.mark.slow
def test_mini_davis_from_frames_to_scores(
    mini_davis: Path,
    tiny_config: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Inference and the scoring command say what ``main.py --eval`` says."""
    common = [*tiny_config, "--davis_path", str(mini_davis), "--resume", str(tiny_checkpoint)]
    monkeypatch.setattr("sys.argv", ["inference_davis.py", *common, "--output_dir", str(tmp_path / "masks")])
    inference_davis.main()
    assert "submission, checked" in capsys.readouterr().out
    report = tmp_path / "report.json"
    gt = mini_davis / "valid" / "Annotations"
    eval_jf.main(["--gt", str(gt), "--pred", str(tmp_path / "masks"), "--workers", "1", "--json", str(report)])
    flags = ["--dataset_file", "davis", "--eval", "--output_dir", str(tmp_path / "eval")]
    monkeypatch.setattr("sys.argv", ["main.py", *common, *flags])
    main.main()
    assert json.loads((tmp_path / "eval" / "scores.json").read_text()) == json.loads(report.read_text())
    results: dict[str, Any] = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["metrics"] == video_metrics(json.loads(report.read_text()))
    assert results["counts"] == {"videos": 3, "objects": 4, "annotations": 4, "frames": 54}
