"""Learning curves: cells of few rows, the same clusterer for all, the table."""

import json
import sys

import jax
import numpy as np
import pytest
from test_reproduce import PAPER, SHORT
from test_scripts import ROOT, script

from deepclust_jax import config, data, metrics, profiles, run, train
from deepclust_jax.clustering import kmeans

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
CURVE = script("learning_curve")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "PROFILES", {"practical": SHORT, "paper": PAPER})
    monkeypatch.setattr(profiles, "LEAST_STEPS", dict.fromkeys(profiles.LEAST_STEPS, 0))
    monkeypatch.setattr(CURVE, "RESULTS", tmp_path / "results")
    return tmp_path


SMALL = ["--data", "digits", "--sizes", "60", "5000", "--seeds", "2"]


def small(monkeypatch):
    """Digits of 150 rows in all."""
    whole = data.load

    def load(name, limit=150, **options):
        return whole(name, limit=min(limit, 150), **options)

    monkeypatch.setattr(data, "load", load)


def cells(folder):
    return {
        (path.parent.name, path.stem): json.loads(path.read_text())
        for path in (folder / "results" / "digits").glob("*/*.json")
    }


def test_front_ends_learn_on_few_rows_up_to_all(folder, monkeypatch, capsys):
    small(monkeypatch)
    args = [*SMALL, "--front-ends", "rows", "autoencoder"]
    assert CURVE.main(args) == 0
    found = cells(folder)
    wanted = {f"{n}-seed{seed}" for n in (60, 150) for seed in (0, 1)}
    assert set(found) == {(e, cell) for e in ("rows", "autoencoder") for cell in wanted}
    assert CURVE.main(args) == 0 and cells(folder) == found  # nothing is trained again
    rows, labels = data.load("digits", limit=60)
    x = rows.x.reshape(60, -1)
    key = run.seed_keys(config.Options(run=config.Run(seeds=2)))[1]
    centroids = kmeans.fit(jax.random.fold_in(key, 2), x, 10).centroids
    score = metrics.accuracy(labels, np.asarray(kmeans.assign(x, centroids)[0]))
    assert found["rows", "60-seed1"]["external"]["accuracy"] == pytest.approx(score)
    by_rows = [found["rows", f"60-seed{seed}"]["external"]["accuracy"] for seed in (0, 1)]
    shown = CURVE.reproduce.mean(100 * np.array(by_rows))
    assert f"| rows | {shown} |" in CURVE.table()
    assert "| digits, rows | 60 | 150 | seeds |" in CURVE.table()


def test_a_cell_of_other_options_is_trained_again(folder, monkeypatch):
    small(monkeypatch)
    args = ["--data", "digits", "--sizes", "60", "--seeds", "1", "--front-ends", "rows"]
    assert CURVE.main(args) == 0
    file = CURVE.cell_file("digits", "rows", 60, 0)
    cell = json.loads(file.read_text())
    cell["recipe"]["checksum"], cell["external"] = "other", {"accuracy": -1.0}
    file.write_text(json.dumps(cell))
    assert CURVE.main(args) == 0
    assert json.loads(file.read_text())["external"]["accuracy"] > 0


def test_what_diverged_or_does_not_fit_stops_no_other(folder, monkeypatch, capsys):
    small(monkeypatch)
    cluster = CURVE.cluster

    def diverges(dataset, labels, front_end, seed):
        if (front_end, seed) == ("autoencoder", 0):
            raise train.Diverged("no number")
        return cluster(dataset, labels, "rows", seed)

    monkeypatch.setattr(CURVE, "cluster", diverges)
    front_ends = ["--front-ends", "autoencoder", "contrastive-speech", "rows"]
    args = ["--data", "digits", "--sizes", "60", "--seeds", "2", *front_ends]
    assert CURVE.main(args) == 1
    found = capsys.readouterr()
    assert "digits contrastive-speech: left out, image rows are no sounds" in found.out
    assert "digits autoencoder 60 rows seed 0: no number" in found.err
    made = {
        (e, f"{n}-seed{seed}")
        for e in ("autoencoder", "rows")
        for n in (60, 150)
        for seed in (0, 1)
    }
    assert set(cells(folder)) == made - {("autoencoder", "60-seed0"), ("autoencoder", "150-seed0")}


def test_cells_of_other_options_have_no_mean(folder, monkeypatch):
    small(monkeypatch)
    args = ["--data", "digits", "--sizes", "60", "--seeds", "2", "--front-ends", "rows"]
    assert CURVE.main(args) == 0
    file = CURVE.cell_file("digits", "rows", 60, 1)
    cell = json.loads(file.read_text())
    cell["recipe"]["checksum"] = "of other rows"
    file.write_text(json.dumps(cell))
    with pytest.raises(SystemExit, match="cells of 60 rows in .*rows are of other options"):
        CURVE.table()


def test_fewer_rows_than_clusters_are_left_out(folder, monkeypatch, capsys):
    small(monkeypatch)
    args = ["--data", "digits", "--sizes", "9", "60", "--seeds", "1", "--front-ends", "rows"]
    assert CURVE.main(args) == 0
    assert "digits: [9] rows left out, fewer than its 10 clusters" in capsys.readouterr().out
    assert not CURVE.cell_file("digits", "rows", 9, 0).exists()
    assert CURVE.cell_file("digits", "rows", 60, 0).exists()


@pytest.mark.parametrize(
    "args, words",
    [
        (["--front-ends", "dcn"], "expected as --front-ends rows or a row of reproduce.py"),
        (["--front-ends", "nothing"], "such as autoencoder, found nothing"),
        (["--seeds", "0"], "expected --seeds and --sizes >= 1, found 0"),
        (["--sizes", "0"], "expected --seeds and --sizes >= 1"),
        (["--data", "digit"], "did you mean digits"),
    ],
)
def test_what_cannot_be_is_refused(folder, capsys, args, words):
    assert CURVE.main(args) == 2
    assert words in capsys.readouterr().err
