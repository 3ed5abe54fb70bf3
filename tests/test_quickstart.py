"""The quickstart's results and table; the steps themselves are replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import quickstart
from util.files import write_json

JF = {"start": 0.65, "night_before": 0.2, "valid": 0.641, "night_after": 0.5, "swapped": 0.17, "largest": 0.44}


def test_the_gain_at_night_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def step(title: str, *command: str | int | Path) -> None:
        commands.append([str(word) for word in command])
        if "--json" in command:
            report = Path(command[command.index("--json") + 1])
            kinds = {"colour": {"JF": 0.8}, "negative": {"JF": 0.1}}
            write_json(report, {"global": {"JF": JF[report.parent.name]}, "per_kind": kinds})

    monkeypatch.setattr(quickstart, "run", step)
    quickstart.main(["--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.pop("seconds") >= 0
    assert results == {
        "model": "vdit",
        "start_jf": 65,
        "val_jf": 64.1,
        "adapted_before": 20,
        "adapted_after": 50,
        "swapped_jf": 17,
        "baseline_jf": 44,
        "kinds": {"colour": 80, "negative": 10},
        "steps": 200,
    }
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"by day at night", "bundled checkpoint 65.0 20.0", "after 200 steps 64.1 50.0"} < set(lines)
    trained_on = {words[words.index("--ytvos_path") + 1] for words in commands if words[0] == "main.py"}
    assert trained_on == {str(tmp_path / "data_night")}
