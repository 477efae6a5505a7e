"""The comparison of methods with ClustPy: that both get the same, and the table says what was."""

import dataclasses
import json

import numpy as np
import pytest
from test_scripts import script

from deepclust_jax import config as config_module
from deepclust_jax import data

BENCHMARK = script("benchmark_methods")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(BENCHMARK, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_our_side_trains_every_method_from_one_autoencoder(tmp_path, monkeypatch):
    dataset, _ = data.load("digits", limit=200)
    np.save(tmp_path / "x.npy", dataset.x)
    resolve = config_module.resolve

    def short(options, n_rows):
        training = config_module.Training(
            pretrain_epochs=None if options.method.method == "autoencoder" else 1,
            epochs=None if options.method.method == "n2d" else 1,
        )
        network = config_module.Network(hidden=(8,), embed_dim=3)
        return resolve(dataclasses.replace(
            options, training=training, network=network
        ))  # fmt: skip

    monkeypatch.setattr(config_module, "resolve", short)
    BENCHMARK.train_ours(tmp_path, 0, 10, ["dcn", "vade"])
    for method in ("dcn", "vade"):
        labels = np.load(tmp_path / f"{method}.npy")
        known = json.loads((tmp_path / f"{method}.json").read_text())
        assert labels.shape == (200,) and 1 <= len(np.unique(labels)) <= 10
        assert set(known["seconds"]) == set(known["compile_seconds"]) == {"pretrain", "train"}
    both = [json.loads((tmp_path / f"{m}.json").read_text()) for m in ("dcn", "vade")]
    assert both[0]["seconds"]["pretrain"] == both[1]["seconds"]["pretrain"]


def test_the_table_has_both_sides_and_times_of_seeds_that_both_have(results):
    def cell(library, seed, accuracy, seconds):
        file = BENCHMARK.cell_file("usps", "dcn", library, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "seed": seed,
            "external": {"accuracy": accuracy, "nmi": 0.5},
            "seconds": {"pretrain": 10.0, "train": seconds - 10.0},
            "environment": {"processor": "P", "cores": 2, "versions": {"jax": "1"}},
        }
        if library == "clustpy":
            report["versions"] = {"clustpy": "2"}
        else:
            report["compile_seconds"] = {"pretrain": 3.0, "train": 4.0}
        file.write_text(json.dumps(report))

    cell("deepclust_jax", 0, 0.70, 20)
    cell("deepclust_jax", 1, 0.80, 40)
    cell("deepclust_jax", 2, 0.90, 1000)
    cell("clustpy", 0, 0.60, 60)
    assert "| usps | dcn |" in BENCHMARK.table()
    cell("clustpy", 1, 0.70, 120)
    row = next(line for line in BENCHMARK.table().splitlines() if "| usps |" in line)
    assert row == (
        "| usps | dcn | 75.0 ± 7.1 | 65.0 ± 7.1 | 50.0 ± 0.0 | 50.0 ± 0.0 | "
        "30 and 7 to compile | 90, 3.0× | 2 |"
    )
    assert "clustpy 2, jax 1" in BENCHMARK.table() and "2 cores of P" in BENCHMARK.table()
    BENCHMARK.cell_file("usps", "dcn", "deepclust_jax", 0).unlink()
    BENCHMARK.cell_file("usps", "dcn", "deepclust_jax", 1).unlink()
    assert "| usps | dcn |" not in BENCHMARK.table()  # of other seeds, which say nothing
    BENCHMARK.cell_file("usps", "dcn", "deepclust_jax", 2).unlink()
    assert "| usps | dcn |" not in BENCHMARK.table()  # one side alone
