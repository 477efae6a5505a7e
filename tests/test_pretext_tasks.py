"""The runs that show what pretext tasks learn: trained once, and written as tables."""

import json
import shutil
import sys

import numpy as np
import pytest
from test_scripts import ROOT, script

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
TASKS = script("pretext_tasks")
ROTATION = "train_rotation.py --data digits --limit 60 --held-out 10 --epochs 1 --hidden 4 4"
NEXT_TOKEN = "--held-out 4 --epochs 1 --hidden 8 --embed-dim 2 --n-clusters 2"


@pytest.fixture
def results(tmp_path, monkeypatch):
    texts = tmp_path / "texts.jsonl"
    lines = [{"text": f"{('a cat', 'the ship')[i % 2]} {i}", "label": i % 2} for i in range(20)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(TASKS.reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(TASKS, "RESULTS", tmp_path / "results" / "pretext_tasks")
    monkeypatch.setitem(TASKS.RUNS, "rotation", f"{ROTATION} --embed-dim 2")
    own = f"train_next_token.py --data {texts} {NEXT_TOKEN}"
    monkeypatch.setitem(TASKS.RUNS, "next_token-gru", own)
    return tmp_path / "results" / "pretext_tasks"


def test_runs_are_trained_once_and_shown(results, capsys, monkeypatch):
    args = ["--runs", "rotation", "next_token-gru", "--seeds", "2"]
    assert TASKS.main(args) == 0
    found = {file.stem: json.loads(file.read_text()) for file in results.glob("*.json")}
    assert set(found) == {"rotation", "next_token-gru"}
    shutil.rmtree(results.parents[1] / "runs")
    capsys.readouterr()
    fewer = [*args[:-1], "1"]
    for again in (args, fewer):
        assert TASKS.main(again) == 0 and capsys.readouterr().out == ""  # nothing is trained again
    turns, texts, *commands = TASKS.table().split("\n\n")
    told, by_block = found["rotation"]["pretext"], []
    assert told["rows"] == "rows held out"
    for block in told["blocks"]:
        by_block.append(np.array(block["external"]["accuracy"]["values"]))
    shown = [TASKS.reproduce.mean(100 * np.array(told["accuracy"]["values"]))]
    shown += [TASKS.reproduce.mean(100 * values) for values in by_block]
    row = turns.splitlines()[-1]
    assert row.startswith(f"| digits | {' | '.join(shown)} |") and row.endswith("| 2 |")
    perplexity = found["next_token-gru"]["pretext"]["perplexity"]["values"]
    assert f"| gru 8 | {TASKS.reproduce.mean(np.array(perplexity))} |" in texts.splitlines()[-1]
    assert f"- rotation: `{ROTATION} --embed-dim 2 --seeds 2`" in commands[-1]
    monkeypatch.setitem(TASKS.reproduce.VERSIONS, "rotation", 2)  # the code finds something else
    turns = TASKS.table().split("\n\n")[0]
    assert turns.endswith("| 2 ° |") and "°: of the code before" in TASKS.table()


def test_tables_without_runs_and_no_seeds(results, capsys):
    assert TASKS.table() == "None is trained yet."
    assert TASKS.main(["--seeds", "0"]) == 2
    assert "expected --seeds >= 1, found 0" in capsys.readouterr().err
