"""The script behind the quality table, on a few rows of digits with profiles cut short."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from test_scripts import damage, script

from deepclust_jax import checkpoint, config, data, metrics, profiles, run, train

REPRODUCE = script("reproduce")
MADE = ("autoencoder", "autoencoder-euclidean", "dcn-affine", "autoencoder-paper")
ARGS = ["--data", "digits", "--rows", *MADE, "--seeds", "2"]
NETWORK = {"hidden": (16, 8), "embed_dim": 4}
SHORT = {
    "autoencoder": {
        **NETWORK, "epochs": 2, "learning_rate": 0.2, "decay": 0.2, "metric": "adaptive"
    },
    "contrastive": {**NETWORK, "epochs": 2, "learning_rate": 1e-3, "decay": 1.0},
    "info_max": {
        **NETWORK, "pretrain_epochs": 2, "pretrain_learning_rate": 1e-3, "decay": 1.0, "epochs": 2,
        "learning_rate": 1e-3, "objective": "information",
    },
    "dcn": {
        **NETWORK, "pretrain_epochs": 2, "pretrain_learning_rate": 0.2, "decay": 0.2, "epochs": 2,
        "learning_rate": 1e-4, "weight": 2.0, "metric": "adaptive",
    },
    "idec": {
        **NETWORK, "pretrain_epochs": 2, "pretrain_learning_rate": 0.2, "decay": 0.2, "epochs": 2,
        "learning_rate": 1e-3, "weight": 0.1, "metric": "adaptive",
    },
    "rotation": {
        "network": "conv", "hidden": (8, 8), "embed_dim": 4, "epochs": 2, "learning_rate": 2e-3,
        "decay": 1.0,
    },
    "deep_cluster": {
        "network": "conv", "hidden": (8, 8), "embed_dim": 4, "epochs": 2, "learning_rate": 1e-3,
        "decay": 1.0,
    },
    "cross_modal": {
        "hidden": (8,), "embed_dim": 4, "epochs": 2, "learning_rate": 1e-3, "decay": 1.0,
    },
    "next_token": {
        "network": "gru", "hidden": (8,), "embed_dim": 4, "batch_size": 32, "epochs": 2,
        "learning_rate": 3e-3, "decay": 1.0,
    },
}  # fmt: skip

PAPER = SHORT | {"autoencoder": SHORT["autoencoder"] | {"epochs": 4, "metric": "euclidean"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    whole = data.load
    monkeypatch.setattr(profiles, "PROFILES", {"practical": SHORT, "paper": PAPER})
    monkeypatch.setattr(profiles, "LEAST_STEPS", dict.fromkeys(profiles.LEAST_STEPS, 0))
    monkeypatch.setattr(data, "load", lambda name, **more: whole(name, limit=150, **more))
    monkeypatch.setattr(REPRODUCE, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(REPRODUCE, "STARTS", tmp_path / "starts")
    monkeypatch.setattr(REPRODUCE, "README", tmp_path / "README.md")
    monkeypatch.setattr(REPRODUCE, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(REPRODUCE, "COLUMNS", ("digits", "usps"))
    return tmp_path


def cells(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("seed*.json")}


def test_cells_starts_and_table(folder, capsys):
    results = folder / "results"
    assert REPRODUCE.main(ARGS) == 0
    made = cells(results)
    wanted = {f"digits/{row}/seed{seed}.json" for row in MADE for seed in (0, 1)}
    assert set(map(str, made)) == wanted
    cell = json.loads(made[next(path for path in made if "dcn-affine" in str(path))])
    options = cell["recipe"]["options"]
    assert options["augment"] == "affine" and options["precision"] == "bfloat16"
    assert cell["recipe"]["start"]["method"] == "autoencoder"
    assert set(cell["seconds"]) == {"pretrain", "train"}

    # Nothing is trained twice; a cell that is lost comes back from the kept autoencoder.
    capsys.readouterr()
    assert REPRODUCE.main(ARGS) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(MADE)
    for row, line in zip(MADE, printed, strict=True):
        there = results / "digits" / row
        assert line == f"digits {row}: all seeds are in {there}; to train them again, remove it"
    assert cells(results) == made
    lost = results / "digits" / "autoencoder" / "seed1.json"
    labels = np.load(lost.with_suffix(".npz"))["labels"]
    lost.unlink(), lost.with_suffix(".npz").unlink()
    assert REPRODUCE.main(ARGS) == 0
    np.testing.assert_array_equal(np.load(lost.with_suffix(".npz"))["labels"], labels)
    old, new = json.loads(made[lost.relative_to(results)]), json.loads(lost.read_text())
    assert new["external"] == old["external"] and new["seconds"] == old["seconds"]

    # A cell is the run that the main script makes of the same options and seed.
    dataset, _ = data.load("digits")
    for row, own in zip(
        MADE,
        (
            "--method autoencoder",
            "--method autoencoder --metric euclidean",
            "--method dcn --augment affine",
            "--method autoencoder --profile paper",
        ),
        strict=True,
    ):
        args = ["--n-clusters", "10", "--precision", "bfloat16", *own.split()]
        args += ["--hidden", "16", "8", "--embed-dim", "4"]
        options = config.resolve(config.parse(args))
        found = []
        for seed in (0, 1):
            trained = run.execute(options, dataset.x, seeds=[seed])
            found.append(train.embed(trained.algorithm, trained.state, dataset.x)[1][0])
            stored = np.load(results / "digits" / row / f"seed{seed}.npz")["labels"]
            np.testing.assert_array_equal(stored, found[seed])
        assert (found[0] != found[1]).any()

    pages = {folder / "page.md": ("quality", "nuisance"), folder / "README.md": ("overview",)}
    for page, names in pages.items():
        marks = [f"<!-- {n}: written by a script -->\n<!-- end of {n} -->\n" for n in names]
        page.write_text(f"a\n{''.join(marks)}b\n")
    assert REPRODUCE.main(["--table"]) == 0
    texts = [page.read_text() for page in pages]
    for text, names in zip(texts, pages.values(), strict=True):
        assert text.startswith(f"a\n<!-- {names[0]}")
        assert text.endswith(f"<!-- end of {names[-1]} -->\nb\n")
    accuracy = [
        100 * json.loads((results / "digits" / "autoencoder" / f"seed{s}.json").read_text())
        ["external"]["accuracy"] for s in (0, 1)
    ]  # fmt: skip
    # Cells of different options have no mean.
    cell["recipe"]["options"]["weight"] = 7.0
    (results / "digits" / "dcn-affine" / "seed1.json").write_text(json.dumps(cell))
    with pytest.raises(SystemExit, match="seed1.json and seed0.json are of other options"):
        REPRODUCE.main(["--table"])
    assert [page.read_text() for page in pages] == texts
    shown = f"{np.mean(accuracy):.1f} ± {np.std(accuracy, ddof=1):.1f}"
    row = next(
        line for line in texts[0].splitlines() if line.startswith("| digits | autoencoder |")
    )
    assert shown in row
    assert f"| autoencoder | {shown} (2) | – |" in texts[1].splitlines()


def test_the_vote_of_three_runs_is_scored_once_and_shown(folder, monkeypatch):
    dataset, labels = data.load("digits")
    rng = np.random.default_rng(0)

    def write(seed):
        wrong = np.where(rng.random(150) < 0.3, rng.integers(0, 10, 150), labels)
        found = rng.permutation(10)[wrong]
        report = {"seconds": {"train": 1.0}}
        rows = dataset.x.reshape(150, -1)
        return REPRODUCE.write_cell(dataset, "kmeans", seed, rows, found, labels, report)

    accuracy = [write(seed)["accuracy"] for seed in (0, 1)]
    REPRODUCE.write_vote("digits", "kmeans", labels)
    file = folder / "results" / "digits" / "kmeans" / "vote.json"
    assert not file.exists(), "of two there is no most"
    accuracy.append(write(2)["accuracy"])
    assert REPRODUCE.main(["--data", "digits", "--rows", "kmeans", "--seeds", "3"]) == 0
    voted = json.loads(file.read_text())["external"]["accuracy"]
    assert voted > max(accuracy) + 0.05
    row = row_of_table("kmeans")
    assert f"| {100 * voted:.1f} | {100 * max(accuracy):.1f} | – | 3 |" in row
    assert f"the vote of the runs {100 * (voted - np.mean(accuracy)):+.1f}" in (
        REPRODUCE.quality_table()
    )
    monkeypatch.setitem(REPRODUCE.LINES, "info_max", ("kmeans",))
    assert f"| vote of its runs | {100 * voted:.1f} | – |" in REPRODUCE.overview()
    before = file.read_bytes()
    REPRODUCE.write_vote("digits", "kmeans", labels)
    assert file.read_bytes() == before
    write(2)  # another run: the vote is not of it
    assert REPRODUCE.overview().count("| vote of its runs | – | – |") == 1
    REPRODUCE.write_vote("digits", "kmeans", labels)
    assert file.read_bytes() != before


def test_clusters_are_scored_against_what_they_should_not_follow(folder, monkeypatch):
    dataset, labels = data.load("digits")
    others = np.arange(150) % 3
    monkeypatch.setattr(data, "nuisance", lambda name, whole, *, limit: others[:limit])
    rows, report = dataset.x.reshape(150, -1), {"seconds": {"train": 1.0}}
    for row in ("kmeans", "dcn-merge"):
        REPRODUCE.write_cell(dataset, row, 0, rows, others, labels, report)
        assert len(REPRODUCE.nuisance_table().splitlines()) == 2, "not scored yet"
    done = ["--data", "digits", "--rows", "kmeans", "dcn-merge", "--seeds", "1"]
    monkeypatch.setattr(REPRODUCE, "train_cells", None)
    assert REPRODUCE.main(done) == 0
    found = [line.split(" | ") for line in REPRODUCE.nuisance_table().splitlines()[2:]]
    assert [line[1] for line in found] == ["kmeans", "dcn-merge, 3.0 clusters"]
    for line in found:
        assert line[4:6] == ["100.0", "100.0"]
        assert float(line[2]) < 30 and float(line[3]) < 30
    monkeypatch.setattr(REPRODUCE, "VERSIONS", {"kmeans": 7})
    assert REPRODUCE.nuisance_table().splitlines()[2].endswith("| 1 ° |")


def test_methods_on_pairs_start_from_the_same_features(folder):
    dataset, labels = data.load("digits")
    REPRODUCE.train_cells(dataset, labels, "info_max-affine", [0])
    cell = json.loads(REPRODUCE.cell_file("digits", "info_max-affine", 0).read_text())
    start = cell["recipe"]["start"]
    assert (start["method"], start["augment"]) == ("contrastive", "affine")
    assert cell["recipe"]["options"]["precision"] == start["precision"] == "float32"
    assert set(cell["seconds"]) == {"pretrain", "train"}
    kept = folder / "starts" / "digits" / "contrastive-affine-seed0"
    before = sorted(kept.rglob("*"))
    REPRODUCE.train_cells(dataset, labels, "contrastive-affine", [0])
    assert sorted(kept.rglob("*")) == before
    z, found = train.embed(
        *(REPRODUCE.start_of(dataset, "contrastive-affine", [0])[0][:2]), dataset.x
    )
    stored = np.load(REPRODUCE.cell_file("digits", "contrastive-affine", 0).with_suffix(".npz"))
    np.testing.assert_array_equal(stored["labels"], found[0])
    # Merged, they are of the same features, clustered again, and it is not told the classes.
    REPRODUCE.train_cells(dataset, labels, "contrastive-affine-merge", [0])
    file = REPRODUCE.cell_file("digits", "contrastive-affine-merge", 0)
    merged = json.loads(file.read_text())
    assert merged["recipe"]["options"]["n_clusters"] == 35
    assert merged["recipe"]["start"]["n_clusters"] == 10
    assert sorted(kept.rglob("*")) == before
    count = len(np.unique(np.load(file.with_suffix(".npz"))["labels"]))
    assert 2 <= count < 35
    row = next(line for line in REPRODUCE.quality_table().splitlines() if "-merge" in line)
    assert f"contrastive-affine-merge, {count:.1f} clusters |" in row


def test_kmeans_on_the_rows_is_a_row_of_its_own(folder):
    dataset, labels = data.load("digits")
    REPRODUCE.train_cells(dataset, labels, "kmeans", [0, 1])
    assert REPRODUCE.is_done(dataset, "kmeans", 1) and not REPRODUCE.is_done(dataset, "kmeans", 2)
    file = REPRODUCE.cell_file("digits", "kmeans", 1)
    found = np.load(file.with_suffix(".npz"))["labels"]
    score = json.loads(file.read_text())["external"]["accuracy"]
    assert score == metrics.accuracy(labels, found) and 0.6 < score < 0.85
    assert not list((folder / "starts").glob("*"))  # nothing is trained
    assert "| digits | kmeans |" in REPRODUCE.quality_table()


@pytest.mark.parametrize("row", ["rotation", "deep_cluster-affine"])
def test_networks_of_their_own_are_trained_from_nothing_in_one_phase(folder, row):
    dataset, labels = data.load("digits")
    REPRODUCE.train_cells(dataset, labels, row, [0])
    cell = json.loads(REPRODUCE.cell_file("digits", row, 0).read_text())
    assert set(cell["seconds"]) == {"train"}
    options = cell["recipe"]["options"]
    assert options["precision"] == "float32" and options["network"] == "conv"
    assert options["augment"] == ("affine" if "affine" in row else "none")
    assert f"| digits | {row} |" in REPRODUCE.quality_table()


def test_cross_modal_has_the_second_modality_and_the_others_have_not(folder, monkeypatch):
    monkeypatch.setattr(REPRODUCE, "PARTNERS", {"digits": "digits"})
    args = ["--data", "digits", "--seeds", "1", "--rows", "kmeans", "cross_modal-each"]
    assert REPRODUCE.main(args) == 0
    kmeans, both = (
        json.loads(REPRODUCE.cell_file("digits", row, 0).read_text())["recipe"]
        for row in ("kmeans", "cross_modal-each")
    )
    assert kmeans["checksum"] == data.load("digits")[0].checksum != both["checksum"]
    options = both["options"]
    assert (options["partner"], options["parts"]) == ("digits", ["8x8x1", "8x8x1"])
    assert (options["augment"], options["precision"]) == ("each", "float32")
    monkeypatch.setattr(REPRODUCE, "train_cells", lambda *args: pytest.fail("trained again"))
    assert REPRODUCE.main(args) == 0


def test_next_token_reads_the_texts_in_their_order(folder, monkeypatch):
    file = folder / "texts.jsonl"
    lines = [{"text": f"{('red', 'blue')[i % 2]} {i} of many", "label": i % 2} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, lines)))
    load, asked = data.dataset.load, []

    def named(name, **options):
        asked.append(options.get("scaling"))
        dataset, labels = load(file, **options)
        return dataclasses.replace(dataset, name=name, n_clusters=2), labels

    monkeypatch.setattr(data, "load", named)
    monkeypatch.setattr(data, "nuisance", lambda *_, **more: None)  # of no set that has a name
    args = ["--data", "texts", "--seeds", "1", "--rows", "kmeans", "next_token"]
    assert REPRODUCE.main(args) == 0
    cell = json.loads(REPRODUCE.cell_file("texts", "next_token", 0).read_text())
    assert set(cell["seconds"]) == {"train"} and cell["rows"] == 40
    options = cell["recipe"]["options"]
    assert (options["scaling"], options["network"]) == ("tokens", "gru")
    monkeypatch.setattr(REPRODUCE, "train_cells", lambda *args: pytest.fail("trained again"))
    assert REPRODUCE.main(args) == 0
    assert asked == [None, "tokens", None]  # no vocabulary is learnt where there is all


def test_seeds_together_are_the_seeds_alone(folder):
    """Rounding apart, and a seed that is there already is left alone."""
    args = ["--data", "digits", "--rows", "autoencoder", "dcn"]
    assert REPRODUCE.main([*args, "--first", "1", "--seeds", "2"]) == 0
    alone = cells(folder / "results")
    assert REPRODUCE.main([*args, "--seeds", "4", "--together", "4"]) == 0
    made = cells(folder / "results")
    assert alone.items() <= made.items() and len(made) == 8
    cell = json.loads(REPRODUCE.cell_file("digits", "dcn", 2).read_text())
    assert cell["together"] == 3 and cell["seed"] == 2
    together = np.load(REPRODUCE.cell_file("digits", "dcn", 2).with_suffix(".npz"))["labels"]
    for path in (folder / "results" / "digits" / "dcn").glob("seed2*"):
        path.unlink()
    assert REPRODUCE.main([*args, "--first", "2", "--seeds", "3"]) == 0
    one = np.load(REPRODUCE.cell_file("digits", "dcn", 2).with_suffix(".npz"))["labels"]
    np.testing.assert_array_equal(one, together)


def test_of_seeds_together_only_those_that_diverged_are_missing(folder, monkeypatch, capsys):
    dataset, _ = data.load("digits")
    embed = train.embed

    def broken(*args):
        z, found = embed(*args)
        z[1] = np.nan
        return z, found

    monkeypatch.setattr(train, "embed", broken)
    row = ["--data", "digits", "--rows", "autoencoder", "--seeds", "3", "--together", "3"]
    assert REPRODUCE.main(row) == 1
    assert "found others for seeds [1]" in capsys.readouterr().err
    assert {p.stem for p in folder.rglob("results/*/*/*.json")} == {"seed0", "seed2"}


def test_a_cell_is_trained_again_only_if_its_recipe_changes(folder, monkeypatch):
    dataset, labels = data.load("digits")
    assert not REPRODUCE.is_done(dataset, "dcn", 0)
    REPRODUCE.train_cells(dataset, labels, "dcn", [0])
    assert REPRODUCE.is_done(dataset, "dcn", 0) and not REPRODUCE.is_done(dataset, "dcn", 1)
    file = REPRODUCE.cell_file("digits", "dcn", 0)
    cell = json.loads(file.read_text())
    for change in (
        {"options": {"weight": 3.0}},
        {"start": {"epochs": 3}},
        {"checksum": "of other rows"},
    ):
        other = json.loads(json.dumps(cell))
        for part, values in change.items():
            old = other["recipe"][part]
            other["recipe"][part] = old | values if isinstance(old, dict) else values
        file.write_text(json.dumps(other))
        assert not REPRODUCE.is_done(dataset, "dcn", 0), change
    del cell["recipe"]["options"]["augment"]  # as before there was such an option
    del cell["recipe"]["version"]  # and a version
    file.write_text(json.dumps(cell))
    assert REPRODUCE.is_done(dataset, "dcn", 0) and " °" not in row_of_table("dcn")
    monkeypatch.setitem(REPRODUCE.VERSIONS, "dcn", 2)  # the code finds something else now
    assert not REPRODUCE.is_done(dataset, "dcn", 0) and "| 1 ° |" in row_of_table("dcn")
    REPRODUCE.train_cells(dataset, labels, "dcn", [0])
    assert REPRODUCE.is_done(dataset, "dcn", 0) and " °" not in row_of_table("dcn")


def test_the_start_of_a_merged_row_does_not_know_the_number_of_classes(folder, monkeypatch):
    """Trap: the code came in the metric of a k-means with as many clusters as there are classes."""
    dataset, _ = data.load("digits")
    execute, given = run.execute, []

    def noted(options, x, **more):
        given.append(more.get("pretrained"))
        return execute(options, x, **more)

    monkeypatch.setattr(run, "execute", noted)
    REPRODUCE.trained_of(dataset, "dcn", [0])
    REPRODUCE.trained_of(dataset, "dcn-merge", [0])
    told, not_told = (start for start in given if start is not None)
    assert told.view.centroids.shape[1] == 10 and not_told.view.centroids.shape[1] == 35
    kernels = (start.params["encoder"]["params"]["Dense_0"]["kernel"] for start in (told, not_told))
    np.testing.assert_array_equal(*kernels)  # the network is one


def row_of_table(row):
    lines = REPRODUCE.quality_table().splitlines()
    return next(line for line in lines if line.startswith(f"| digits | {row} |"))


def test_a_stopped_autoencoder_goes_on_and_a_damaged_one_is_made_again(folder, monkeypatch):
    dataset, _ = data.load("digits")
    whole, _ = REPRODUCE.start_of(dataset, "autoencoder", [0])
    store = folder / "starts" / "digits" / "autoencoder-seed0" / "train"
    epochs = []
    fit = train.fit

    def counted(*args, **kwargs):
        found = fit(*args, **kwargs)
        epochs.append(len(found.metrics["loss"]))
        return found

    monkeypatch.setattr(train, "fit", counted)
    REPRODUCE.start_of(dataset, "autoencoder", [0])
    assert epochs == []  # finished: loaded

    shutil.rmtree(store)
    monkeypatch.setattr(run, "_SAVE_EVERY", -1.0)
    save, saved = checkpoint.save, []

    def stopped(*args, **kwargs):
        save(*args, **kwargs)
        saved.append(kwargs["step"])
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        REPRODUCE.start_of(dataset, "autoencoder", [0])
    monkeypatch.setattr(checkpoint, "save", save)
    again, _ = REPRODUCE.start_of(dataset, "autoencoder", [0])
    assert len(saved) == 1 and epochs == [1]
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a, b)

    for step in store.iterdir():
        damage(step)
    made, _ = REPRODUCE.start_of(dataset, "autoencoder", [0])
    assert epochs == [1, 2]
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(made.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_diverged_cell_does_not_stop_the_others(folder, monkeypatch, capsys):
    wild = SHORT | {"autoencoder": SHORT["autoencoder"] | {"learning_rate": 1e18}}
    monkeypatch.setattr(profiles, "PROFILES", {"practical": wild, "paper": wild})
    trained = []
    monkeypatch.setattr(
        REPRODUCE, "train_cells", lambda *args, whole=REPRODUCE.train_cells: (
            trained.append(args[2:]), whole(*args),
        ),
    )  # fmt: skip
    assert REPRODUCE.main(ARGS) == 1
    assert len(trained) == 2 * len(MADE)
    assert "digits autoencoder seeds [1]: expected a finite loss" in capsys.readouterr().err
    assert not list(folder.rglob("results/*/*/*.json"))


def test_the_features_of_a_lost_game_are_no_data():
    """Trap: its weights are finite, those from before it was lost."""
    lost = types.SimpleNamespace(step=np.array([20, 20]), missed=np.array([0, 10]))
    front = types.SimpleNamespace(state=lost)
    with pytest.raises(train.Diverged, match="finite steps of gan, found others for seed 7"):
        REPRODUCE.codes_of(None, "gan", front, 1, 7)
    assert REPRODUCE.games_lost("gan", lost).tolist() == [False, True]
    assert not REPRODUCE.games_lost("rotation", lost).any()


def test_what_cannot_be_trained_is_refused_in_one_line(folder, capsys):
    assert REPRODUCE.main(["--data", "digitz"]) == 2
    assert "did you mean digits" in capsys.readouterr().err
    assert REPRODUCE.main(["--data", "digits", "--seeds", "2", "--first", "3"]) == 2
    assert "--first < --seeds" in capsys.readouterr().err
    assert REPRODUCE.main(["--data", "digits", "--together", "0"]) == 2
    assert "--together >= 1" in capsys.readouterr().err
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(50, 3)))
    assert REPRODUCE.main(["--data", str(folder / "rows.npy")]) == 2
    assert "the name of a data set with classes" in capsys.readouterr().err


def test_what_one_number_of_codes_and_clusters_would_choose():
    found = [(0.1, 2.0, 9.0), (0.3, 1.0, float("nan")), (0.2, float("nan"), 8.0)]
    names = ("silhouette", "davies_bouldin", "calinski_harabasz")
    reports = [{"internal": dict(zip(names, values, strict=True))} for values in found]
    assert REPRODUCE.by_criteria(reports) == [1, 1, 0]


def test_resets_and_sizes_are_rows():
    dataset = data.load("digits")[0]
    for row, sizes, resets in (("dcn", None, None), ("dcn-even", "even", None)):
        found = REPRODUCE.cell_options(dataset, row).method
        assert (found.sizes, found.resets) == (sizes, resets), row
    found = REPRODUCE.cell_options(dataset, "dcn-resets")
    assert found.training.epochs // found.method.resets == 4 and found.method.resets > 5
    assert {REPRODUCE.start_row(row) for row in ("dcn-resets", "dcn-even")} == {"autoencoder"}


def test_another_profile_trains_its_own_start(folder, monkeypatch):
    """Trap: a kept autoencoder of other options that quietly serves as the start."""
    dataset, _ = data.load("digits")
    first, _ = REPRODUCE.start_of(dataset, "autoencoder", [0])
    for epochs in (3, 1):
        other = SHORT | {"autoencoder": SHORT["autoencoder"] | {"epochs": epochs}}
        monkeypatch.setattr(profiles, "PROFILES", {"practical": other})
        second, _ = REPRODUCE.start_of(dataset, "autoencoder", [0])
        assert int(first.state.step[0]) * epochs == int(second.state.step[0]) * 2


def test_published_figures_belong_to_rows_of_the_table():
    rows = REPRODUCE.ROWS
    assert {row for _, row in REPRODUCE.PUBLISHED} <= set(rows)
    assert {row for line in REPRODUCE.LINES.values() for row in line} <= set(rows)
    pages = {REPRODUCE.PAGE: ("quality", "nuisance"), REPRODUCE.README: ("overview",)}
    for page, name in ((page, name) for page, names in pages.items() for name in names):
        assert page.read_text().count(f"<!-- {name}: written by a script -->") == 1


def test_rows_that_need_images_are_left_out_where_there_are_none(monkeypatch, capsys):
    whole = data.load

    def as_table(name):
        dataset, labels = whole(name, limit=150)
        return dataclasses.replace(dataset, kind="tabular"), labels

    monkeypatch.setattr(data, "load", as_table)
    monkeypatch.setattr(REPRODUCE, "train_cells", lambda *args: pytest.fail("trained"))
    rows = ["dcn-affine", "contrastive-affine", "rotation", "deep_cluster"]
    assert REPRODUCE.main(["--data", "digits", "--seeds", "1", "--rows", *rows]) == 0
    found = capsys.readouterr().out
    assert all(f"digits {row}: left out, tabular rows are no images" in found for row in rows)
    assert REPRODUCE.main(["--data", "digits", "--seeds", "1", "--rows", "next_token"]) == 0
    assert "digits next_token: left out, tabular rows are no texts" in capsys.readouterr().out
    rows = ["contrastive-speech", "info_max-speech", "next_frame"]
    assert REPRODUCE.main(["--data", "digits", "--seeds", "1", "--rows", *rows]) == 0
    found = capsys.readouterr().out
    assert all(f"digits {row}: left out, tabular rows are no sounds" in found for row in rows)
    assert REPRODUCE.main(["--data", "digits", "--seeds", "1", "--rows", "cross_modal"]) == 0
    assert "digits cross_modal: left out, it has no second modality" in capsys.readouterr().out


def test_the_features_of_a_row_are_the_data_of_another(folder, monkeypatch):
    """And a seed that diverges on them does not stop the others."""
    dataset, labels = data.load("digits")
    row, seed, starts = "idec-of-rotation", 1, folder / "starts" / "digits"
    whole = REPRODUCE.trained_of

    def fails(codes, row, seeds):
        if seeds == [0]:
            raise train.Diverged("seed 0")
        return whole(codes, row, seeds)

    monkeypatch.setattr(REPRODUCE, "trained_of", fails)
    with pytest.raises(train.Diverged, match=r"found others for seeds \[0\]"):
        REPRODUCE.train_cells(dataset, labels, row, [0, seed])
    assert [REPRODUCE.is_done(dataset, row, s) for s in (0, seed, 2)] == [False, True, False]
    cell = json.loads(REPRODUCE.cell_file("digits", row, seed).read_text())
    assert set(cell["seconds"]) == {"front", "pretrain", "train"}
    made = {name: cell["recipe"][name]["method"] for name in ("options", "start", "front")}
    assert made == {"options": "idec", "start": "autoencoder", "front": "rotation"}
    assert cell["recipe"]["checksum"] == dataset.checksum
    front = REPRODUCE.start_of(dataset, "rotation", [0, seed])[0]
    z = train.embed(front.algorithm, front.state, dataset.x)[0]
    kept = np.load(starts / f"codes-rotation-seed{seed}" / "codes.npy")
    np.testing.assert_allclose(kept, z[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(kept, z[0])
    assert (starts.parent / f"digits-rotation-seed{seed}" / f"autoencoder-seed{seed}").is_dir()
    stored = np.load(REPRODUCE.cell_file("digits", row, seed).with_suffix(".npz"))["labels"]
    codes = REPRODUCE.codes_of(dataset, "rotation", front, 1, seed)
    assert codes.x.shape == (150, 4)
    again, _ = whole(codes, "idec", [seed])
    found = train.embed(again.algorithm, again.state, codes.x)[1][0]
    np.testing.assert_array_equal(stored, found)
    assert f"| digits | {row} |" in REPRODUCE.quality_table()


def test_a_start_of_other_networks_is_trained_again(folder):
    """Trap: a network that changed since, and a stored start of which the recipe is the same."""
    dataset, _ = data.load("digits")
    REPRODUCE.start_of(dataset, "autoencoder", [0])
    kept = folder / "starts" / "digits" / "autoencoder-seed0"
    note = json.loads((kept / "made.json").read_text())
    other = dataclasses.replace(dataset, x=dataset.x[:, :7])
    shutil.rmtree(kept / "train")
    run.execute(REPRODUCE.cell_options(other, "autoencoder"), other.x, folder=kept, seeds=[0])
    assert json.loads((kept / "made.json").read_text()) == note
    trained = REPRODUCE.start_of(dataset, "autoencoder", [0])[0]
    assert train.embed(trained.algorithm, trained.state, dataset.x)[0].shape == (1, 150, 4)


def test_a_start_that_cannot_be_written_is_kept(folder, monkeypatch):
    """A full disk says nothing against what was trained, and training again would not end."""
    dataset, _ = data.load("digits")
    REPRODUCE.start_of(dataset, "autoencoder", [0])
    kept = sorted((folder / "starts").rglob("*"))

    def full(*args, **options):
        raise checkpoint.CheckpointError("cannot write a checkpoint: no space left")

    monkeypatch.setattr(run, "execute", full)
    with pytest.raises(checkpoint.CheckpointError, match="no space left"):
        REPRODUCE.start_of(dataset, "autoencoder", [0])
    assert sorted((folder / "starts").rglob("*")) == kept


def test_next_token_is_left_out_where_its_library_is_missing(monkeypatch, capsys):
    whole, trained = data.load, []

    def texts(name, scaling=None):
        if scaling == "tokens":
            raise data.DataError("text as tokens needs the tokenizers library")
        dataset, labels = whole("digits", limit=150)
        return dataclasses.replace(dataset, kind="text"), labels

    monkeypatch.setattr(data, "load", texts)
    monkeypatch.setattr(REPRODUCE, "train_cells", lambda _, __, row, ___: trained.append(row))
    args = ["--data", "bbc_news", "--seeds", "1", "--rows", "next_token", "kmeans"]
    assert REPRODUCE.main(args) == 0
    assert trained == ["kmeans"]
    assert "next_token: left out, text as tokens needs the tokenizers" in capsys.readouterr().out


def test_rotation_is_left_out_where_images_are_not_square(monkeypatch, capsys):
    whole = data.load

    def cut(name):
        dataset, labels = whole(name, limit=150)
        return dataclasses.replace(dataset, x=dataset.x[:, 1:]), labels

    monkeypatch.setattr(data, "load", cut)
    monkeypatch.setattr(REPRODUCE, "train_cells", lambda *args: pytest.fail("trained"))
    assert REPRODUCE.main(["--data", "digits", "--seeds", "1", "--rows", "rotation"]) == 0
    assert "digits rotation: left out, images (7, 8, 1) are not square" in capsys.readouterr().out
