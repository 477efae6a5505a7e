"""The runs that show how good made rows are: trained once, gone on with, and written as tables."""

import json
import sys

import numpy as np
import pytest
from test_scripts import ROOT, script

from deepclust_jax.report import pretext

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
MADE = script("made_rows")
TINY = "--hidden 8 8 --embed-dim 2 --epochs 1 --limit 60"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(MADE.reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(MADE, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(MADE, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(MADE.RUNS, "usps-few", f"train_gan.py --data digits {TINY}")
    monkeypatch.setitem(MADE.RUNS, "ring_8", f"train_gan.py --data ring_8 {TINY}")
    monkeypatch.setitem(MADE.LEARNERS, "usps-few", ("autoencoder --epochs 1 --hidden 8",))
    return tmp_path / "results"


def test_runs_are_trained_once_and_shown(results, capsys):
    args = ["--runs", "ring_8", "usps-few", "--seeds", "2"]
    assert MADE.main(args) == 0
    found = {file.stem: json.loads(file.read_text()) for file in results.glob("*.json")}
    assert set(found) == {"ring_8", "usps-few", "usps-few-autoencoder", "usps-few-autoencoder-made"}
    assert found["ring_8"]["command"] == f"train_gan.py --data ring_8 {TINY} --seeds 2"
    with_made = found["usps-few-autoencoder-made"]
    assert "--made runs/usps-few-" in with_made["command"] and with_made["data"]["made"] == 60
    assert found["usps-few-autoencoder"]["data"]["made"] == 0
    capsys.readouterr()
    assert MADE.main(args) == 0 and capsys.readouterr().out == ""  # nothing is trained again
    near = found["ring_8"]["pretext"]["made"]["near"]["values"]
    table = MADE.table()
    row = next(line for line in table.splitlines() if line.startswith("| ring_8 |"))
    assert f"| {MADE.reproduce.mean(100 * np.array(near))} |" in row and " of 8 |" in row
    scores = [found[f"usps-few-autoencoder{end}"]["external"]["accuracy"] for end in ("", "-made")]
    shown = " | ".join(MADE.reproduce.mean(100 * np.array(s["values"])) for s in scores)
    assert f"| digits | autoencoder | {shown} | 2 |" in table


def test_a_run_of_another_command_is_trained_again_and_one_that_was_stopped_goes_on(results):
    args = ["--runs", "ring_8", "--seeds", "1"]
    assert MADE.main(args) == 0
    file = results / "ring_8.json"
    file.write_text(json.dumps({"command": "another"}))
    (folder,) = (results.parent / "runs").glob("ring_8-*")
    report = (folder / "report.json").read_text()
    assert MADE.main(args) == 0  # of the report that is there
    assert json.loads(file.read_text())["external"] == json.loads(report)["external"]
    assert MADE.main([*args[:-1], "2"]) == 0
    assert json.loads(file.read_text())["n_runs"] == 2


def test_no_seeds_are_refused(capsys):
    assert MADE.main(["--seeds", "0"]) == 2
    assert "expected --seeds >= 1, found 0" in capsys.readouterr().err


def test_points_near_a_centre_are_counted_by_the_deviation_of_their_class():
    square = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])  # a deviation of 1
    x = np.concatenate([square, 10 + 2 * square])
    labels = np.repeat([0, 1], 4)
    made = np.array([[[2.9, 0.0], [3.1, 0.0], [10.0, 4.1], [10.0, 3.9], [np.nan, 0.0]]])
    assert pretext.near_centres(made, x, labels)["values"] == [0.4]
