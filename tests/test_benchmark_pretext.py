"""The comparison of pretext training with PyTorch: what is timed, and what the table says."""

import json
import sys
import time

import numpy as np
import pytest
from test_scripts import ROOT, call, refused, script

from deepclust_jax import train

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
BENCHMARK = script("benchmark_pretext")


def test_our_side_trains_and_times_all_epochs_but_the_first(monkeypatch):
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    monkeypatch.setitem(BENCHMARK.BATCH, "contrastive", 20)
    seen = []

    def fake(*args, epochs, on_epoch, **more):
        seen.append((epochs, more["batch_size"], more["refresh_every"]))
        for epoch in range(epochs):
            on_epoch(1 + epoch, np.zeros(1), {})
        return train.Fit(np.zeros(1), {}, 0.0, 0.0)

    monkeypatch.setattr(train, "fit", fake)
    x = np.random.default_rng(0).random((40, 6), np.float32)
    assert BENCHMARK.train_jax("contrastive", x, 3) == 3.0
    assert seen == [(4, 20, 0)]


def test_the_table_is_of_medians_of_both_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(BENCHMARK, "RESULT", tmp_path / "speed.json")
    result = {
        "epochs": 2,
        "seconds": {"rotation": {"jax": [2.0, 1.0, 4.0], "pytorch": [4.0, 3.0, 8.0]}},
        "environment": {"cores": 2, "versions": {"jax": "0.0"}},
        "torch": "1.0",
    }
    BENCHMARK.RESULT.write_text(json.dumps(result))
    row = BENCHMARK.table().splitlines()[2]
    assert row == "| rotation | 2,560 (1,280–5,120) | 1,280 (640–1,707) | 2.00 |"


def test_a_contender_that_does_not_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match="error: rotation by pytorch failed: .*Error"):
        BENCHMARK.run_contender(sys.executable, "pytorch", "rotation", str(tmp_path / "no.npy"), 1)


def test_what_cannot_be_measured_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(BENCHMARK, "RESULT", tmp_path / "none.json")
    for args in (["--rounds", "0"], ["--epochs", "-1"]):
        assert "--rounds and --epochs >= 1" in refused(BENCHMARK, *args)
    with pytest.raises(SystemExit, match="expected a Python with PyTorch, found /no/python"):
        call(BENCHMARK, "--torch-python", "/no/python")
    with pytest.raises(SystemExit, match="run it first"):
        BENCHMARK.table()
