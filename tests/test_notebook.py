"""The notebook ``docs/own_video.ipynb``, run by a Jupyter kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.predictions import read_binary_mask
from datasets.toy import ToyParameters, make_video
from datasets.toy.scene import KINDS
from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbclient: bash scripts/setup.sh --dev")
nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient: bash scripts/setup.sh --dev")
pytestmark = pytest.mark.slow

SIZE = 320, 480  # of the example's frames
IOU = [0.476, 0.455, 0.674]  # of each object's masks and the ground truth


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Jupyter and IPython out of the user's home."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))


def read() -> Any:
    return nbformat.read(ROOT / "docs" / "own_video.ipynb", as_version=4)


def run(notebook: Any, folder: Path) -> list[Any]:
    """Run a notebook in a folder and return the outputs of its code cells; a cell that fails raises."""
    folder.mkdir(exist_ok=True)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def text(outputs: Any) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_from_top_to_bottom(tmp_path: Path):
    for name in ("configs", "datasets", "demo.py", "engine.py", "models", "scripts", "toy", "util"):
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = read()
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    nbformat.validate(notebook)
    *_, look, video, masks = run(notebook, tmp_path / "docs")
    assert any("image/png" in output.get("data", {}) for output in look)
    assert any("data:video/mp4;base64," in output.get("data", {}).get("text/html", "") for output in video)

    toy = make_video(ToyParameters(0, 1, 0, frames=24, height=320, width=480, seed=0, kinds=KINDS), "valid", 0)
    objects = {sentence.obj_id: sentence.text for sentence in reversed(toy.sentences) if sentence.obj_id is not None}
    folders = sorted((tmp_path / "runs" / "own_video" / "masks").iterdir())
    iou = []
    for number, folder in zip(sorted(objects), folders, strict=True):
        found = np.stack([read_binary_mask(file, SIZE) for file in sorted(folder.iterdir())]).astype(bool)
        truth = toy.masks == number
        iou.append((found & truth).sum() / (found | truth).sum())
        assert f"{objects[number]}: 24 masks, {found.mean():.1%} of the pixels\n" in text(masks)
    assert iou == pytest.approx(IOU, abs=0.01)
    assert (tmp_path / "runs" / "own_video.zip").is_file()


def test_clones_and_installs_where_the_project_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = tmp_path / "source"
    source.mkdir()
    (source / "demo.py").write_text("print('imported')", encoding="utf-8")
    (source / "requirements.txt").write_text("numpy>=2\n", encoding="utf-8")  # installed, so nothing changes
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "First"]):
        subprocess.run(["git", "-C", source, *words], check=True, timeout=30)
    notebook = read()
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    again = ["%cd -q ..", setup.source, "import demo\n\nprint(Path.cwd())"]  # as after a restart of the session
    notebook.cells = [setup]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="cannot clone ADDRESS; set REPOSITORY"):
        run(notebook, tmp_path / "content")
    setup.source = setup.source.replace('"ADDRESS"', repr(str(source)))
    notebook.cells = [setup, *map(nbformat.v4.new_code_cell, again)]
    assert text(run(notebook, tmp_path / "content")[-1]) == f"imported\n{tmp_path / 'content' / 'rvos'}\n"
