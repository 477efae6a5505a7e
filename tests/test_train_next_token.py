"""The script for next-token prediction: what it prints and leaves, and what it refuses."""

import json
import sys

import jax
import numpy as np
import pytest
from test_scripts import CLUSTER, ROOT, TRAIN, call, done, refused, script

from deepclust_jax import config, data, metrics, run, train
from deepclust_jax.algorithms import next_token
from deepclust_jax.report import baselines, tables

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
NEXT_TOKEN = script("train_next_token")
SMALL = ["--hidden", "16", "--embed-dim", "4", "--n-clusters", "2", "--seeds", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    animals, ships = ("cats", "dogs", "birds"), ("sails", "masts", "ropes")
    with file.open("w") as out:
        for i in range(60):
            things = (animals, ships)[i % 2]
            text = f"{things[i % 3]} and {things[(i + 1) % 3]} are {things[i // 2 % 3]} number {i}"
            out.write(json.dumps({"text": text, "label": ("animal", "ship")[i % 2]}) + "\n")
    return file


@pytest.fixture(scope="module")
def run_of_texts(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("next_token") / "run"
    return out, done(NEXT_TOKEN, "--data", texts, *SMALL, "--held-out", "12", "--out", out)


def test_perplexity_words_and_written_texts_are_reported(run_of_texts, texts):
    out, printed = run_of_texts
    report = json.loads((out / "report.json").read_text())
    found = report["pretext"]
    assert found["rows"] == "rows held out" and len(found["perplexity"]["values"]) == 2
    made, x = run.restore(out), data.load(texts, scaling="tokens")[0].x
    nets = next_token.build_nets(next_token.Config(embed_dim=4, hidden=(16,)), x.shape[1:])
    state = jax.tree.map(lambda leaf: leaf[1], made.state)
    total, told = next_token.told(state.params["encoder"], x[-12:], nets.language)
    wanted = float(np.exp(total.sum() / told.sum()))
    assert found["perplexity"]["values"][1] == pytest.approx(wanted, rel=1e-4)
    mean, guess = (f"{v:#.4g}" for v in (found["perplexity"]["mean"], found["by_frequency"]))
    assert f"perplexity, rows held out: {mean.rstrip('.')} ± " in printed
    assert f"by frequency {guess.rstrip('.')}" in printed
    beside = next_token.told(state.params["encoder"], x[:12], nets.language)
    wanted = float(np.exp(beside[0].sum() / beside[1].sum()))
    assert found["of_trained_on"]["values"][1] == pytest.approx(wanted, rel=1e-4)
    (line,) = [line for line in printed.splitlines() if line.startswith("perplexity")]
    assert f", of as many trained on {found['of_trained_on']['mean']:#.4g}".rstrip(".") in line
    assert report["baselines"][0]["name"] == baselines.TEXTS and baselines.TEXTS in printed
    assert "Few texts" not in printed  # which the table shows
    assert len(report["words"]) == len(report["cluster_sizes"])
    samples = (out / "samples.md").read_text()
    sizes = report["cluster_sizes"]
    assert samples.count("written by the network") == sum(size > 0 for size in sizes)
    assert samples.count("Words: ") == len(sizes)


@pytest.mark.parametrize(
    "told, known, words",
    [
        (100.0, 90.0, None),
        (950.0, 900.0, "nothing is learnt yet"),
        (5000.0, 900.0, "known by heart alone; give fewer"),
        (600.0, 200.0, None),
        (2.0, None, "known by heart; --held-out"),
        (100.0, None, None),
        (950.0, None, "nothing is learnt yet"),
        (None, None, None),
    ],
)
def test_a_perplexity_is_explained(told, known, words):
    """Trap: texts that are known by heart, of which "train longer" is the opposite of advice."""
    found = tables._of_perplexity(told, known, 1000.0)
    assert found == [] if words is None else len(found) == 1 and words in found[0]
    values = {"values": [None, 3.0, float("nan"), 5.0]}
    assert tables._of_sound(values) == 4.0 and tables._of_sound({"values": [None]}) is None


def test_texts_without_labels_are_compared_with_tf_idf_all_the_same(texts, tmp_path):
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    out = tmp_path / "run"
    printed = done(
        NEXT_TOKEN, "--data", tmp_path / "texts.txt", *SMALL, "--held-out", "12", "--out", out
    )
    found = json.loads((out / "report.json").read_text())["pretext"]["agreement"][baselines.TEXTS]
    options, x = run.read_options(out), data.load(tmp_path / "texts.txt")[0].x
    simpler = baselines.kmeans_of_rows(run.seed_keys(options), x, 2)
    own = np.load(out / "labels_all.npy")
    wanted = [float(metrics.ari(a, b)) for a, b in zip(own, simpler, strict=True)]
    assert found["values"] == pytest.approx(wanted)
    assert f"agreement with {baselines.TEXTS} [% ARI]: {100 * np.mean(wanted):.1f}" in printed
    assert "Few texts: of 2,225, BBC news, k-means on TF-IDF is better" in printed


def test_another_method_takes_the_options_but_not_the_tokens(run_of_texts):
    file = run_of_texts[0] / "config.json"
    again = config.resolve(config.parse(["--config", str(file)]))
    assert (again.data.scaling, again.training.batch_size) == ("tokens", 32)
    other = config.resolve(config.parse(["--config", str(file), "--method", "autoencoder"]))
    assert (other.data.scaling, other.training.batch_size) == ("auto", 256)
    assert other.network.network == "mlp" and other.training.epochs == 2  # which was given


def test_perplexity_by_frequency_is_that_of_counts():
    from deepclust_jax.report import pretext

    trained_on = np.float32([[1, 2, 2, 3], [1, 2, 0, 0]])
    counts = np.ones(12)
    counts[[2, 3]] += [3, 1]
    counts[:2] = 0
    p = counts / counts.sum()
    rows = np.float32([[1, 3, 2, 9, 0]])
    wanted = np.exp(-np.mean(np.log(p[[3, 2, 9]])))
    assert pretext._by_frequency(trained_on, rows, 12) == pytest.approx(wanted)
    assert np.isnan(pretext._by_frequency(trained_on, rows[:, :1], 12))  # nothing is told


def test_new_documents_are_labelled_by_a_stored_run(run_of_texts, texts, tmp_path):
    out, _ = run_of_texts
    done(CLUSTER, out, texts, "--labels-out", tmp_path / "labels.npy")
    found = np.load(tmp_path / "labels.npy")
    np.testing.assert_array_equal(found, np.load(out / "labels.npy"))


def test_a_stopped_run_goes_on_as_one_that_was_not(run_of_texts, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_SAVE_EVERY", 0.0)
    whole, out = train.fit, tmp_path / "part"

    def fit(*args, on_epoch, **options):
        def stop(epoch, *more):
            on_epoch(epoch, *more)
            raise KeyboardInterrupt

        return whole(*args, on_epoch=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", fit)
        args = ["--data", texts, *SMALL, "--held-out", "12", "--out", out]
        assert call(NEXT_TOKEN, *args).code == 130
    done(NEXT_TOKEN, "--resume", "--out", out)
    for name in ("embeddings.npy", "labels_all.npy"):
        np.testing.assert_array_equal(np.load(out / name), np.load(run_of_texts[0] / name))


@pytest.mark.parametrize(
    "args, words",
    [
        (["--network", "mlp"], "expected --network gru or transformer beside --method next_token"),
        (["--precision", "bfloat16"], "--method next_token needs --precision float32"),
        (["--method", "dec"], "expected no --method, which is next_token here"),
        (["--augment", "affine"], "--augment affine needs images"),
        (["--network", "transformer", "--hidden", "16", "8"], "expected one width for all layers"),
    ],
)
def test_what_cannot_work_is_refused_before_it_begins(texts, tmp_path, args, words):
    out = tmp_path / "run"
    assert words in refused(NEXT_TOKEN, "--data", texts, *SMALL, "--out", out, *args)
    assert not out.exists()


@pytest.mark.parametrize(
    "args, words",
    [
        (["--method", "dec", "--network", "gru"], "expected --network mlp or conv beside --method"),
        (["--method", "dec", "--scaling", "tokens"], "expected --scaling tokens beside --method"),
        (
            ["--method", "next_token", "--data", "digits"],
            "next_token) are of texts, found image data",
        ),
        (["--method", "next_token", "--scaling", "none"], "expected --scaling tokens beside"),
    ],
)
def test_tokens_and_readers_are_of_this_method_alone(texts, tmp_path, args, words):
    data = [] if "--data" in args else ["--data", texts]
    assert words in refused(TRAIN, *data, *args, "--n-clusters", "2", "--out", tmp_path / "run")
