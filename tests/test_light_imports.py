"""Commands that make, convert or score files start at once: what they must not import, PyTorch first of all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# PyTorch takes 2.5 s of CPU, torchvision as much again, diffusers and what it pulls in twice that.
PYTORCH = {"torch", "torchvision", "diffusers", "transformers", "peft", "timm"}
FILE_READERS = {"scipy", "h5py", "av", "pycocotools"}
PICTURES = {"matplotlib", "tensorboard"}
HEAVY = PYTORCH | FILE_READERS | PICTURES

# Modules in the order in which one process imports them, and what none of them up to there may have imported.
FORBIDDEN = {
    "util.config": HEAVY | {"cv2", "numpy"},
    "datasets.registry": HEAVY | {"cv2", "numpy"},
    "scripts.quickstart": HEAVY | {"cv2", "numpy"},
    "datasets": HEAVY | {"cv2"},
    "util.parallel": HEAVY,  # workers import it and the module of their work
    "datasets.scoring": HEAVY,
    "datasets.predictions": HEAVY,
    "scripts.eval_jf": HEAVY,
    "scripts.baselines": HEAVY,
    "scripts.make_toy_data": HEAVY,
    "scripts.launch": HEAVY,
    "util.drawing": HEAVY - {"av"},  # writes videos
    "demo": HEAVY - {"av"},  # reports a video that cannot be read before it loads the model
    "scripts.web_demo": (HEAVY | {"gradio", "fastapi"}) - {"av"},
    "scripts.prepare_data": HEAVY - {"av", "pycocotools"},  # draws RefCOCO's polygons
}

CODE = """
import importlib, json, sys
loaded = {}
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
    loaded[module] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(loaded))
"""


def test_light_commands_import_nothing_heavy(root: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(FORBIDDEN))], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    found = {module: FORBIDDEN[module] & set(names) for module, names in loaded.items()}
    assert {module: names for module, names in found.items() if names} == {}


HELP = """
import io, json, runpy, sys
from contextlib import redirect_stdout
loaded = {}
for script in json.loads(sys.argv[1]):
    sys.argv = [script, "--help"]
    run = runpy.run_path if script.endswith(".py") else runpy.run_module
    try:
        with redirect_stdout(io.StringIO()) as out:
            run(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code and "usage:" in out.getvalue(), script
    loaded[script] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(loaded))
"""
ENTRIES = ("main.py", "inference_ytvos.py", "inference_davis.py", "demo.py")


def test_help_imports_nothing_heavy(root: Path) -> None:
    """Nor does it run on to what is imported after it was given."""
    sources = {f"scripts.{path.stem}": path.read_text(encoding="utf-8") for path in (root / "scripts").glob("*.py")}
    del sources["scripts.launch"]  # launch.sh prints its help
    scripts = sorted(name for name, source in sources.items() if "run_cli(main)" in source and "Parser(" in source)
    assert len(scripts) > 10
    run = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps([*ENTRIES, *scripts])], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert {script: found for script, names in loaded.items() if (found := PYTORCH & set(names))} == {}
