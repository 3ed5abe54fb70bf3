"""Shared fixtures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.forks import Forks

# Tests use no network: without this, a path that could be a hub id is looked up there, with retries.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"layers_per_block": 1, "vae_layers_per_block": 1, "encoder_layers": 1}
"""Sizes of ``small_stack``."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Slow tests also wait, for processes and time limits: one worker more than there are cores."""
    from util.parallel import available_cores

    return available_cores() + (config.option.markexpr == "slow")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for which tests were skipped."""
    skipped = (report.longrepr for report in terminalreporter.stats.get("skipped", []))
    reasons = Counter(where[2].removeprefix("Skipped: ") for where in skipped if isinstance(where, tuple))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published numbers and real video that developers have beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is absent: the published fixtures are not on this machine")
    return folder


@pytest.fixture(scope="session")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random frozen stack (seed 0, default sizes); only to be read."""
    from models.diffusion.tiny import make_tiny_stack

    return make_tiny_stack(tmp_path_factory.mktemp("pretrained") / "tiny_stack")


@pytest.fixture(scope="session")
def small_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with half the layers, for tests that train and infer; only to be read."""
    from models.diffusion.tiny import make_tiny_stack

    return make_tiny_stack(tmp_path_factory.mktemp("pretrained") / "small_stack", **SMALL)


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Wan 2.1; only to be read."""
    from tests.tiny_wan import make_tiny_wan

    return make_tiny_wan(tmp_path_factory.mktemp("pretrained") / "tiny_wan")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small toy set in the layout of Ref-YouTube-VOS; only to be read."""
    from datasets.toy import make_toy

    root = tmp_path_factory.mktemp("data") / "toy"
    make_toy(root, num_train=4, num_valid=2, num_test=1, frames=5, seed=7)
    return root


@pytest.fixture(scope="session")
def one_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy set with one validation video of four frames, for tests that look at no scores; only to be read."""
    from datasets.toy import make_toy

    root = tmp_path_factory.mktemp("data") / "one_video"
    make_toy(root, num_train=4, num_valid=1, num_test=0, frames=4, seed=7)
    return root


@pytest.fixture(scope="session")
def tiny_config(root: Path, small_stack: Path) -> list[str]:
    """Flags that build a tiny VD-IT."""
    return ["--config", str(root / "configs" / "vdit_toy.yaml"), "--pretrained", str(small_stack), "--device", "cpu"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the tiny VD-IT."""
    import torch

    from datasets.registry import load_config
    from models import build_model
    from models.checkpoints import save_checkpoint
    from util.config import config_dict

    cfg = load_config(tiny_config, "")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "checkpoint.pth"
    save_checkpoint(path, build_model(cfg), cfg.model, config_dict(cfg), step=0)
    return path


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """The folder for temporary files, for tests of the web page."""
    from tests.page_tools import temporary_folder

    with temporary_folder(tmp_path / "temporary") as folder:
        yield folder


@pytest.fixture(scope="session")
def forks(tiny_config: list[str]) -> Iterator[Forks]:
    """Starts processes that a test may kill."""
    from tests.forks import Forks

    with Forks() as server:
        server.warm(*tiny_config)
        yield server
