"""The script behind the quality table, on a few rows of digits with profiles cut short."""

import json

import numpy as np
import pytest
from test_scripts import ROOT, script

from deepclust_jax import config, data

REPRODUCE = script("reproduce")
ARGS = ["--data", "digits", "--rows", "autoencoder", "dcn-affine", "--seeds", "2"]
SHORT = {
    "autoencoder": {"epochs": 2, "learning_rate": 0.2, "decay": 0.2},
    "dcn": {
        "pretrain_epochs": 2, "pretrain_learning_rate": 0.2, "decay": 0.2, "epochs": 2,
        "learning_rate": 1e-4, "weight": 2.0,
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    whole = data.load
    monkeypatch.setattr(config, "PROFILES", {"practical": SHORT, "paper": SHORT})
    monkeypatch.setattr(data, "load", lambda name: whole(name, limit=150))
    monkeypatch.setattr(REPRODUCE, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(REPRODUCE, "STARTS", tmp_path / "starts")
    monkeypatch.setattr(REPRODUCE, "README", tmp_path / "README.md")
    return tmp_path


def cells(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json")}


def test_cells_starts_and_table(folder, capsys):
    results = folder / "results"
    assert REPRODUCE.main(ARGS) == 0
    made = cells(results)
    assert sorted(map(str, made)) == [
        f"digits/{row}/seed{seed}.json" for row in ("autoencoder", "dcn-affine") for seed in (0, 1)
    ]
    cell = json.loads(made[next(path for path in made if "dcn-affine" in str(path))])
    assert cell["options"]["augment"] == "affine" and cell["options"]["precision"] == "bfloat16"

    # Nothing is trained twice; a cell that is lost comes back from the kept autoencoder.
    capsys.readouterr()
    assert REPRODUCE.main(ARGS) == 0 and capsys.readouterr().out == ""
    assert cells(results) == made
    lost = results / "digits" / "autoencoder" / "seed1.json"
    labels = np.load(lost.with_suffix(".npz"))["labels"]
    lost.unlink(), lost.with_suffix(".npz").unlink()
    assert REPRODUCE.main(ARGS) == 0
    np.testing.assert_array_equal(np.load(lost.with_suffix(".npz"))["labels"], labels)
    old, new = json.loads(made[lost.relative_to(results)]), json.loads(lost.read_text())
    assert new["external"] == old["external"] and new["seconds"] == old["seconds"]

    readme = folder / "README.md"
    readme.write_text("a\n<!-- quality: written by a script -->\n<!-- end of quality -->\nb\n")
    assert REPRODUCE.main(["--table"]) == 0
    text = readme.read_text()
    assert text.startswith("a\n<!-- quality") and text.endswith("<!-- end of quality -->\nb\n")
    accuracy = [
        100 * json.loads((results / "digits" / "autoencoder" / f"seed{s}.json").read_text())
        ["external"]["accuracy"] for s in (0, 1)
    ]  # fmt: skip
    row = next(line for line in text.splitlines() if line.startswith("| digits | autoencoder |"))
    assert f"{np.mean(accuracy):.1f} ± {np.std(accuracy, ddof=1):.1f}" in row


def test_another_profile_trains_its_own_start(folder, monkeypatch):
    """Trap: a kept autoencoder of other options that quietly serves as the start."""
    dataset, _ = data.load("digits")
    first = REPRODUCE.autoencoder(dataset, "autoencoder", 0)
    for epochs in (3, 1):
        other = SHORT | {"autoencoder": SHORT["autoencoder"] | {"epochs": epochs}}
        monkeypatch.setattr(config, "PROFILES", {"practical": other})
        second = REPRODUCE.autoencoder(dataset, "autoencoder", 0)
        assert int(first.state.step[0]) * epochs == int(second.state.step[0]) * 2


def test_published_figures_belong_to_rows_of_the_table():
    rows = REPRODUCE.ROWS
    assert {row for _, row in REPRODUCE.PUBLISHED} <= set(rows)
    assert (ROOT / "README.md").read_text().count("<!-- quality: written by a script -->") == 1
