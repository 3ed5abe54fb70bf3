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
    "scripts.quickstart": HEAVY | {"cv2", "numpy"},
    "scripts.benchmark": HEAVY | {"cv2", "numpy"},
    "datasets": HEAVY | {"cv2"},
    "scripts.web_demo": HEAVY | {"cv2", "gradio", "fastapi"},
    "util.parallel": HEAVY,  # workers import it and the module of their work
    "util.jf_davis": HEAVY,
    "util.jf_expressions": HEAVY,
    "util.jf_ref_davis": HEAVY,
    "util.jf_unions": HEAVY,
    "util.submission": HEAVY,
    "scripts.eval_jf": HEAVY,
    "scripts.baselines": HEAVY,
    "scripts.make_toy_data": HEAVY,
    "scripts.train_toy": HEAVY,
    "scripts.launch_rank": HEAVY,  # and with it scripts.launch
    "util.visualisation": HEAVY - {"av"},  # writes movies
    "scripts.plot_run": HEAVY - {"av"},
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
