"""Reports: the choice without labels, logs that survive a crash, figures, JSON and the table."""

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepclust_jax.report import environment, figures, logs, run_directory, scores, tables, tiles

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
# Runs 0, 1, 2 are the same partition but for one row; run 3 cuts across them.
RUNS = np.array(
    [
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        [1, 1, 1, 0, 0, 0, 2, 2, 2],
        [0, 0, 0, 1, 1, 1, 2, 2, 1],
        [0, 1, 2, 0, 1, 2, 0, 1, 2],
    ]
)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def assert_png(path: Path, low: int = 60, high: int = 1800) -> None:
    assert 500 < path.stat().st_size < 400_000
    assert all(low <= side <= high for side in png_size(path)), png_size(path)


# --- scores


def test_choose_cannot_see_labels():
    names = ["labels_all", "objectives", "chosen_by", "aside"]
    assert list(inspect.signature(scores.choose).parameters) == names


def test_choose_is_the_medoid_and_ties_go_to_the_objective():
    run, reason = scores.choose(RUNS, np.array([3.0, 2.0, 1.0, 0.0]))
    assert run == 1  # runs 0 and 1 are one partition and tie; run 3 has the lowest loss
    assert "agrees best" in reason and "tie" in reason
    assert scores.choose(RUNS[[2, 3, 0, 1]], np.array([0.0, 0.0, 2.0, 3.0]))[0] == 2


def test_choose_with_few_runs_takes_the_objective():
    assert scores.choose(RUNS[:2], np.array([2.0, 1.0]))[0] == 1
    assert scores.choose(RUNS[:1], np.array([np.nan]))[0] == 0


def test_choose_where_all_runs_are_lost_says_so():
    lost = [(RUNS[:2], [np.nan, np.nan]), (np.zeros_like(RUNS), np.arange(4.0))]
    for labels, losses in lost:
        n = len(labels)
        reason = f"All {n} runs are lost; run 0 is one of them."
        assert scores.choose(labels, np.array(losses)) == (0, reason)
    assert scores.choose(RUNS[:1], np.array([np.nan])) == (0, "The only run is lost.")


def test_choose_of_two_tells_a_tie():
    assert "lowest final loss" in scores.choose(RUNS[:2], np.array([2.0, 1.0]))[1]
    tie = scores.choose(RUNS[:2], np.array([2.0, 2.0]))
    assert tie == (0, "Run 0 is the first of 2 runs of the same final loss.")


def test_clusters_found_are_those_of_the_run_kept_not_of_the_largest():
    found = np.array([[0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 1], [0, 1, 2, 3, 4, 5]])
    z = np.random.default_rng(0).normal(size=(3, 6, 2))
    report = scores.score_population(found, iter(z), np.array([1.0, 2.0, 0.0]))
    assert report["chosen"]["run"] == 0 and report["cluster_sizes"] == [3, 3]
    assert scores.score_population(found[:2], iter(z[:2]), np.zeros(2), n_clusters=4)[
        "cluster_sizes"
    ] == [3, 3, 0, 0]


def test_choose_sets_diverged_and_collapsed_runs_aside():
    collapsed = np.zeros_like(RUNS[:1])
    runs = np.concatenate([collapsed, collapsed, collapsed, RUNS[:3]])
    run, reason = scores.choose(runs, np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0]))
    assert run == 3 and "3 lost set aside" in reason
    assert scores.choose(RUNS[:2], np.array([np.nan, 5.0]))[0] == 1


def test_runs_that_are_told_to_be_lost_are_set_aside_and_their_losses_stay():
    lost = np.array([True, True, False, False])
    losses = np.array([0.0, 1.0, 3.0, 2.0])
    z = np.random.default_rng(0).normal(size=(9, 2))
    report = scores.score_population(RUNS, (z for _ in RUNS), losses, aside=lost)
    assert report["chosen"]["run"] == 3 and "2 lost set aside" in report["chosen"]["reason"]
    assert report["objective"]["values"] == losses.tolist()
    assert scores.voted(RUNS, losses, 3, lost) is None, "of two there is no most"
    losses[0] = np.inf
    assert scores.choose(RUNS, losses, aside=np.ones(4, bool))[0] == 1, "the lowest that is finite"


def test_runs_that_diverged_or_collapsed_have_no_vote():
    a, b = [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 0]
    labels = np.array([np.zeros(6, int), a, b, a, b, b])
    objectives = np.array([0.0, 1.0, 2.0, 3.0, np.nan, np.nan])
    np.testing.assert_array_equal(scores.voted(labels, objectives, 1), a)
    assert scores.voted(labels[:3], objectives[:3], 1) is None, "of two there is no most"


def test_choose_names_the_shapes_it_wants():
    with pytest.raises(ValueError, match=r"labels_all \[S, n\].*\(9,\)"):
        scores.choose(RUNS[0], np.zeros(1))


def population(n_runs: int, with_labels: bool) -> dict:
    y = np.repeat([0, 1, 2], 3)
    z = RNG.normal(size=(9, 2)) * 0.1 + y[:, None]
    objectives = np.array([3.0, 2.0, 1.0, 0.0])[:n_runs]
    embeddings = (z for _ in range(n_runs))  # an iterator: one embedding at a time
    return scores.score_population(
        RUNS[:n_runs], embeddings, objectives, y if with_labels else None
    )


def test_score_population_worked_example():
    report = population(4, with_labels=True)
    accuracy = report["external"]["accuracy"]
    # Run 2 has one row of nine wrong; run 3 has one row of each class in each cluster.
    np.testing.assert_allclose(accuracy["values"], [1, 1, 8 / 9, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(accuracy["mean"], 29 / 36, rtol=1e-6)
    # Deviations from the mean in 36ths: 7, 7, 3, -17.
    np.testing.assert_allclose(accuracy["std"], np.sqrt(396 / 3) / 36, rtol=1e-6)
    assert report["chosen"]["run"] == 1 and report["oracle"] == 0
    assert report["cluster_sizes"] == [3, 3, 3]
    assert report["objective"]["mean"] == 1.5
    assert len(report["agreement"]["values"]) == 4


def test_labels_change_no_choice():
    with_labels, without = population(4, with_labels=True), population(4, with_labels=False)
    assert with_labels["chosen"] == without["chosen"]
    assert without["external"] == {} and without["oracle"] is None


def test_score_population_counts_the_embeddings():
    with pytest.raises(ValueError, match="expected 2 embeddings, one per run, found 1"):
        scores.score_population(RUNS[:2], [RNG.normal(size=(9, 2))], np.zeros(2))
    with pytest.raises(ValueError, match="expected 2 embeddings, one per run, found more"):
        scores.score_population(RUNS[:2], RNG.normal(size=(3, 9, 2)), np.zeros(2))


def test_a_run_without_a_finite_loss_leaves_no_mean_and_no_warning():
    z = RNG.normal(size=(9, 2))
    report = scores.score_population(RUNS[:3], [z] * 3, np.array([np.inf, 1.0, 2.0]))
    assert np.isnan(report["objective"]["std"]) and report["chosen"]["run"] == 1
    line = next(x for x in tables.score_table(report).splitlines() if x.startswith("final loss"))
    assert line.split()[2:] == ["–", "1.000"]


def test_oracle_ignores_nan():
    assert scores.oracle({"external": {"accuracy": {"values": [np.nan, 0.2, 0.9]}}}) == 2


def test_write_report_is_strict_json(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    values = {
        "nan": np.nan,
        "array": np.array([1.0, np.inf]),
        "half": np.float32(0.5),
        "flag": np.bool_(True),
        "count": np.int64(3),
        "nested": [{"x": (np.float64("nan"), None)}],
    }
    scores.write_report(path, values)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "nan": None,
        "array": [1.0, None],
        "half": 0.5,
        "flag": True,
        "count": 3,
        "nested": [{"x": [None, None]}],
    }
    assert list(json.loads(path.read_text())) == sorted(values)
    with pytest.raises(TypeError, match="found object"):
        scores.write_report(path, {"bad": object()})
    assert json.loads(path.read_text())["count"] == 3  # a failed write leaves the old report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


# --- table


def names(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.split("  ")[0].strip() for line in lines[2 : lines.index("")]]


def test_table_with_labels():
    report = population(4, with_labels=True)
    text = tables.score_table(report)
    internal = ["agreement [% ARI]", *sorted(report["internal"]), "final loss"]
    found = names(text)
    assert found[:3] == ["accuracy [%]", "nmi [%]", "ari [%]"]
    assert found[-len(internal) :] == internal
    assert len(found) == len(report["external"]) + len(internal)
    line = next(x for x in text.splitlines() if x.startswith("accuracy"))
    assert line.split()[2:] == ["80.6", "±", "31.9", "100.0", "100.0"]
    assert "oracle, run 0" in text.splitlines()[0] and "without labels (run 1)" in text
    assert text.splitlines()[-1] == "Cluster sizes of run 1: 3 3 3"
    assert len({len(x) for x in text.splitlines()[: text.splitlines().index("")]}) == 1


def test_table_tells_of_empty_clusters():
    report = population(4, with_labels=False)
    report["cluster_sizes"] = [5, 0, 4, 0]
    lines = tables.score_table(report).splitlines()
    assert lines[-2:] == [
        "Cluster sizes of run 1: 5 0 4 0", "2 of its 4 clusters are empty."
    ]  # fmt: skip


def test_table_without_labels_shows_no_oracle():
    report = population(4, with_labels=False)
    text = tables.score_table(report)
    assert names(text) == ["agreement [% ARI]", *sorted(report["internal"]), "final loss"]
    assert "oracle" not in text


def test_table_of_one_run_has_no_spread_and_survives_json(tmp_path):
    report = population(1, with_labels=True)
    assert np.isnan(report["objective"]["std"])
    text = tables.score_table(report)
    assert "±" not in text and "nan" not in text and "agreement" not in text
    scores.write_report(tmp_path / "report.json", report)
    assert tables.score_table(json.loads((tmp_path / "report.json").read_text())) == text


# --- logs


def test_metrics_round_trip_with_resume(tmp_path):
    values = RNG.normal(size=(6, 2)).astype(np.float32)
    with logs.open_log(tmp_path) as log:
        for e in range(4):
            log.epoch("pretrain", e, {"loss": values[e], "count": np.array([e, e])})
        log.epoch("cluster", 1, {"nmi": np.array([0.5, np.nan])})  # nothing logged at epoch 0
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("cluster,2,0,nmi,0.1")  # a crash cut this line: 0.1234 was meant
    with logs.open_log(tmp_path, resume={"pretrain": 2}) as log:
        for e in range(2, 6):
            log.epoch("pretrain", e, {"loss": values[e] + 1.0})
    read = logs.read_metrics(tmp_path)
    expected = values + np.array([0, 0, 1, 1, 1, 1], np.float32)[:, None]
    np.testing.assert_array_equal(read["pretrain"]["loss"].astype(np.float32), expected)
    np.testing.assert_array_equal(read["pretrain"]["count"][:, 0], [0, 1, *[np.nan] * 4])
    np.testing.assert_array_equal(read["cluster"]["nmi"], [[np.nan, np.nan], [0.5, np.nan]])
    with (tmp_path / "metrics.csv").open() as file:
        keys = [(r["phase"], r["epoch"], r["seed"], r["metric"]) for r in csv.DictReader(file)]
    assert len(keys) == len(set(keys)) == 2 * (6 + 2) + 2


def test_log_refuses_what_would_log_an_epoch_twice(tmp_path):
    with logs.open_log(tmp_path) as log:
        log.epoch("pretrain", 0, {"loss": np.zeros(2)})
        log.epoch("pretrain", 0, {"nmi": np.zeros(2)})  # another metric of the same epoch
        with pytest.raises(ValueError, match="after 0 for 'loss', found 0"):
            log.epoch("pretrain", 0, {"loss": np.zeros(2)})
        with pytest.raises(ValueError, match=r"\[seeds\], found shape \(1, 2\)"):
            log.epoch("pretrain", 1, {"loss": np.zeros((1, 2))})
    with pytest.raises(FileExistsError, match="resume="):
        logs.open_log(tmp_path)
    with logs.open_log(tmp_path, resume={}) as log, pytest.raises(ValueError, match="after 0"):
        log.epoch("pretrain", 0, {"loss": np.zeros(2)})


def test_read_metrics_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected metrics.csv"):
        logs.read_metrics(tmp_path)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_each_epoch_once_even_when_resumed_within_a_second(tmp_path):
    with logs.open_log(tmp_path) as log:
        for e in range(30):
            log.epoch(
                "pretrain", e, {"loss": np.array([1.0, 3.0]) + e, "k": np.array([2.0, np.nan])}
            )
    with logs.open_log(tmp_path, resume={"pretrain": 10}) as log:
        for e in range(10, 12):
            log.epoch("pretrain", e, {"loss": np.array([0.0, 1.0])})
        log.epoch("cluster", 0, {"loss": np.array([5.0])})
    read = scalars(tmp_path / "tensorboard")
    means = [(e, 2.0 + e) for e in range(10)] + [(10, 0.5), (11, 0.5)]
    assert read["pretrain/loss"] == means
    assert read["pretrain/loss/seed_1"] == [(e, 3.0 + e) for e in range(10)] + [(10, 1), (11, 1)]
    assert read["cluster/loss"] == [(0, 5.0)] and "cluster/loss/seed_0" not in read
    assert "pretrain/k" not in read and len(read["pretrain/k/seed_0"]) == 10  # nan: a gap


def test_an_open_tensorboard_forgets_what_is_logged_again(tmp_path):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with logs.open_log(tmp_path) as log:
        for e in range(5):
            log.epoch("pretrain", e, {"loss": np.array([1.0])})
        log.epoch("cluster", 0, {"loss": np.array([7.0])})
    viewer = module.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(viewer.Scalars("pretrain/loss")) == 5
    with logs.open_log(tmp_path, resume={"pretrain": 3}) as log:
        log.epoch("pretrain", 3, {"loss": np.array([2.0])})
    viewer.Reload()
    found = [(event.step, event.value) for event in viewer.Scalars("pretrain/loss")]
    assert found == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]
    assert [event.value for event in viewer.Scalars("cluster/loss")] == [7.0]


def test_projector_files_agree_and_a_second_call_replaces_the_first(tmp_path):
    z = RNG.normal(size=(50, 3)).astype(np.float32)
    z[7] = np.nan
    labels = np.arange(50) % 4
    images = np.zeros((50, 4, 6, 1), np.uint8)
    images[:, 1] = np.arange(50, dtype=np.uint8)[:, None, None]
    for _ in range(2):
        logs.write_projector(tmp_path, z, labels, images=images, max_rows=20)
    board = tmp_path / "tensorboard"
    config = (board / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1
    tensors = np.loadtxt(board / "projector" / "tensors.tsv")
    lines = (board / "projector" / "metadata.tsv").read_text().splitlines()
    meta = np.array([line.split("\t") for line in lines[1:]], int)
    assert lines[0] == "cluster\trow" and tensors.shape == (20, 3) and 7 not in meta[:, 1]
    np.testing.assert_allclose(tensors, z[meta[:, 1]], rtol=1e-5)
    np.testing.assert_array_equal(meta[:, 0], labels[meta[:, 1]])
    image = pytest.importorskip("PIL.Image")
    with image.open(board / "projector" / "sprite.png") as picture:
        sprite = np.asarray(picture)
    assert sprite.shape == (30, 30, 3)  # 5 x 5 tiles of 6 pixels, square although images are not
    np.testing.assert_array_equal(sprite[2::6, 0::6, 0].ravel()[:20], meta[:, 1])
    with pytest.raises(ValueError, match="expected 50 images"):
        logs.write_projector(tmp_path, z, labels, images=images[:3])


def test_projector_config_is_what_tensorboard_parses(tmp_path):
    proto = pytest.importorskip("tensorboard.plugins.projector.projector_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    logs.write_projector(tmp_path, np.eye(4), np.arange(4), images=np.zeros((4, 2, 2, 3)))
    board = tmp_path / "tensorboard"
    text = (board / "projector_config.pbtxt").read_text()
    (entry,) = text_format.Parse(text, proto.ProjectorConfig()).embeddings
    assert list(entry.sprite.single_image_dim) == [2, 2]
    for name in (entry.tensor_path, entry.metadata_path, entry.sprite.image_path):
        assert (board / name).is_file()


def test_images_reach_tensorboard_and_leave_the_scalars_alone(tmp_path):
    figures.cluster_sizes(tmp_path / "sizes.png", np.array([3, 1]))
    with logs.open_log(tmp_path) as log:
        log.epoch("pretrain", 0, {"loss": np.zeros(1)})
    for _ in range(2):
        logs.write_images(tmp_path, [tmp_path / "sizes.png"])
    assert scalars(tmp_path / "tensorboard")["pretrain/loss"] == [(0, 0.0)]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "figures")).Reload()
    (shown,) = events.Images("sizes")
    assert (shown.width, shown.height) == png_size(tmp_path / "sizes.png")


# --- figures


@pytest.mark.parametrize("d", [1, 2, 10])
@pytest.mark.parametrize("k", [1, 25])
def test_embedding_map(tmp_path, d, k):
    labels = np.arange(200) % k
    labels[labels == 3] = 2  # cluster 3 is empty
    labels[0] = -1  # noise
    z = RNG.normal(size=(200, d)) + labels[:, None]
    z[5] = np.nan
    figures.embedding_map(tmp_path / "map.png", z, labels, max_rows=100)
    assert_png(tmp_path / "map.png", low=300)


def test_embedding_map_of_a_line_is_a_line(tmp_path):
    """Trap: rounding stretched over the height of the picture, where labels cannot be placed."""
    for i in range(40):
        rng = np.random.default_rng(i)
        z = rng.normal(size=(2, 3))[np.arange(60) % 2]
        assert (figures._plane(z, rng)[0][:, 1] == 0).all()
    figures.embedding_map(tmp_path / "line.png", z, np.arange(60) % 2)


def test_embedding_map_of_constant_and_of_no_finite_rows(tmp_path):
    figures.embedding_map(tmp_path / "constant.png", np.ones((20, 4)), np.zeros(20, int))
    figures.embedding_map(tmp_path / "nan.png", np.full((20, 4), np.nan), np.zeros(20, int))
    assert_png(tmp_path / "constant.png")
    assert_png(tmp_path / "nan.png")
    with pytest.raises(ValueError, match=r"labels \[n\], found \(20, 4\) and \(19,\)"):
        figures.embedding_map(tmp_path / "x.png", np.ones((20, 4)), np.zeros(19, int))


def test_spread_parts_what_overlaps_and_leaves_the_rest():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [500.0, 0.0]])
    moved = figures.spread(points, gap=20.0)
    assert np.linalg.norm(moved[0] - moved[1]) > 19.0
    np.testing.assert_allclose(moved[2], points[2], atol=0.01)


@pytest.mark.parametrize("sizes", [[7], [5, 0, 3], np.arange(25), np.arange(100), [0]])
def test_cluster_sizes(tmp_path, sizes):
    figures.cluster_sizes(tmp_path / "sizes.png", np.array(sizes))
    assert_png(tmp_path / "sizes.png")


def test_matched_counts_worked_example():
    y = np.array(["b", "b", "a", "a", "a", "b"])
    labels = np.array([4, 4, 7, 7, 9, 2])
    counts, classes, clusters = figures.matched_counts(y, labels)
    assert classes.tolist() == ["a", "b"] and clusters.tolist() == [7, 4, 2, 9]
    assert counts.tolist() == [[2, 0, 0, 1], [0, 2, 1, 0]]


@pytest.mark.parametrize(("n_classes", "k"), [(10, 10), (3, 1), (2, 25), (60, 60)])
def test_confusion(tmp_path, n_classes, k):
    i = np.arange(240)
    figures.confusion(tmp_path / "confusion.png", i % n_classes, i % k)
    assert_png(tmp_path / "confusion.png")


def test_confusion_names_the_classes_it_has(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    y = np.array([2, 2, 0, 0])  # a part of the rows may lack a class
    figures.confusion(tmp_path / "c.png", y, np.array([1, 1, 0, 0]), ("cat", "dog", "emu"))
    shown = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert shown == ["cat", "emu"]


@pytest.mark.parametrize("k", [1, 25, 40])
def test_sample_images(tmp_path, k):
    images = RNG.integers(0, 256, (400, 20, 16, 3), dtype=np.uint8)  # noise: the worst to compress
    labels = np.arange(400) % k
    labels[labels == 3] = 2
    figures.sample_images(tmp_path / "images.png", images, labels, RNG.random(400))
    assert_png(tmp_path / "images.png", high=900)


def test_sample_images_are_the_nearest_pixel_for_pixel(tmp_path):
    image = pytest.importorskip("PIL.Image")
    grey = np.arange(6)[:, None, None, None] * np.ones((1, 4, 4, 1)) / 10.0 + 0.1
    labels, distances = np.array([0, 0, 0, 1, 1, 1]), np.array([3, 1, 2, 9, 8, 7.0])
    figures.sample_images(tmp_path / "x.png", grey, labels, distances, per_cluster=2)
    with image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # 48-pixel tiles to the right of 92 pixels of names, below a title of 24.
    middle = pixels[24 + 24 : 24 + 96 : 48, 92 + 24 : 92 + 96 : 48, 0]
    np.testing.assert_allclose(middle / 255.0, [[0.2, 0.3], [0.6, 0.5]], atol=0.01)


def test_nearest_skips_noise_and_keeps_empty_clusters():
    found = figures.nearest(np.array([2, -1, 2, 0, 2]), np.array([3.0, 0, 1, 5, 2]), 2)
    assert [x.tolist() for x in found] == [[3], [], [2, 4]]
    more = figures.nearest(np.array([1, -1]), np.array([1.0, 2.0]), 2, n_clusters=4)
    assert [x.tolist() for x in more] == [[], [0], [], []]


def test_clusters_without_rows_are_shown_at_the_end_too(tmp_path):
    images, labels = RNG.random((6, 4, 4, 1)), np.array([0, 0, 1, 1, 0, 1])
    for k in (2, 5):
        figures.sample_images(tmp_path / f"{k}.png", images, labels, np.zeros(6), n_clusters=k)
    assert png_size(tmp_path / "5.png")[1] > 2 * png_size(tmp_path / "2.png")[1]
    texts = ["a", "b", "c", "d", "e", "f"]
    figures.sample_texts(tmp_path / "x.md", texts, labels, np.zeros(6), n_clusters=3)
    assert "## Cluster 2 (n = 0)" in (tmp_path / "x.md").read_text()


def test_rgb_takes_bytes_unit_floats_and_stretches_the_rest():
    unit = tiles.rgb(np.array([0.0, 0.5, 1.0]).reshape(1, 1, 3, 1))
    np.testing.assert_array_equal(unit[0, 0, :, 1], [0, 128, 255])
    stretched = tiles.rgb(np.array([-2.0, 0.0, 2.0, np.nan]).reshape(1, 1, 4, 1))
    np.testing.assert_array_equal(stretched[0, 0, :, 0], [0, 128, 255, 128])
    with pytest.raises(ValueError, match=r"found shape \(2, 4, 4\)"):
        tiles.rgb(np.zeros((2, 4, 4)))


def test_names_and_texts_that_are_hard_to_write(tmp_path):
    """Traps: $ is mathematics to matplotlib; half a surrogate pair and odd bytes are no UTF-8."""
    labels = np.array([0, 1])
    figures.confusion(tmp_path / "c.png", labels, labels, ("$10%-$20%", "$0_-$5_"))
    figures.sample_texts(tmp_path / "t.md", ["a \ud83d", "b"], labels, np.zeros(2))
    assert "\\ud83d" in (tmp_path / "t.md").read_text()
    name = b"f\xe9.png"
    files = {"file": (os.fsdecode(name), "b")}
    run_directory.write_labels_by_file(tmp_path / "l.csv", files, labels)
    assert (tmp_path / "l.csv").read_bytes() == b"file,cluster\r\n" + name + b",0\r\nb,1\r\n"


def test_sample_texts(tmp_path):
    texts = ["far", "two\nlines", "x" * 50]
    figures.sample_texts(
        tmp_path / "t.md", texts, np.array([0, 0, 2]), np.array([2.0, 1, 0]), width=10
    )
    assert (tmp_path / "t.md").read_text().splitlines()[2:] == [
        "## Cluster 0 (n = 2)",
        "",
        "- row 1: two lines",
        "- row 0: far",
        "",
        "## Cluster 1 (n = 0)",
        "",
        "",
        "## Cluster 2 (n = 1)",
        "",
        "- row 2: " + "x" * 9 + "…",
    ]


@pytest.mark.parametrize(
    "values, told", [([1.01, 0.98], True), ([None, 0.995], True), ([0.9, 0.97], False)]
)
def test_an_autoencoder_that_learnt_nothing_is_told(values, told):
    """Trap: of few rows some epochs are a handful of steps, and clusters are of random weights."""
    z = RNG.normal(size=(9, 2))
    report = scores.score_population(RUNS[:2], iter([z, z]), np.zeros(2))
    report |= {"unexplained": {"values": values}, "options": {"method": "dcn"}}
    share = 100 * np.mean([v for v in values if v is not None])
    told_so = f"The autoencoder leaves {share:.1f} % of" in tables.score_table(report)
    assert told_so == told


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_training_curves(tmp_path, n_seeds, monkeypatch):
    plotted, save = [], figures._save
    monkeypatch.setattr(
        figures, "_save", lambda figure, path: (plotted.append(figure), save(figure, path))
    )
    values = RNG.random((12, n_seeds))
    values[9:, 0] = np.nan  # a diverged seed
    terms = {f"term{i}": values for i in range(4)} | {"never": np.full((12, n_seeds), np.nan)}
    figures.training_curves(tmp_path / "curves.png", {"pretrain": terms, "cluster": {"x": values}})
    assert_png(tmp_path / "curves.png")
    drawn = plotted[0].axes[0].lines[0].get_xdata()
    np.testing.assert_array_equal(drawn, np.arange(1, 10))  # epochs from 1, as in the terminal
    with pytest.raises(ValueError, match="found none"):
        figures.training_curves(tmp_path / "curves.png", {})


def test_importing_the_report_loads_no_plotting_or_logging_library():
    code = (
        "import sys; from deepclust_jax.report import figures, logs, tables, tiles; "
        "heavy = {'matplotlib', 'tensorboardX', 'PIL', 'sklearn', 'scipy', 'jax'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# --- environment


def test_environment_is_json_and_names_no_place():
    found = environment.environment()
    text = json.dumps(found, allow_nan=False)
    assert found["versions"]["jax"] and found["device"]["count"] >= 1
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_git_state_knows_whose_checkout_it_is(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    try:
        git(tmp_path, "init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "other.txt").write_text("")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-m", "x", "--no-verify")
    assert environment.git_state(package) == (None, None)  # another project's checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "y", "--no-verify")
    (tmp_path / "result.json").write_text("{}")
    commit, dirty = environment.git_state(package)
    assert len(commit) == 40 and dirty is False  # untracked results do not count
    (package / "new.py").write_text("")
    assert environment.git_state(package) == (commit, True)
    (package / "new.py").unlink()
    (tmp_path / "other.txt").write_text("changed")
    assert environment.git_state(package) == (commit, True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as inside a git hook
    assert environment.git_state(package) == (commit, True)
    monkeypatch.setenv("PATH", "")
    assert environment.git_state(package) == (None, None)


def test_stacks_of_digits_are_told():
    report = population(2, with_labels=False)
    one = {"values": [900.0, 950.0], "mean": 925.0, "std": 35.4}
    stacked = {"classes": one, "modes": one, "divergence": one, "accuracy": 0.985}
    report["pretext"] = {
        "made": {}, "compared": 5000, "stacked": stacked, "over_training": {},
    }  # fmt: skip
    line = next(x for x in tables.score_table(report).splitlines() if "stacks of digits" in x)
    assert "have 925.0 ± 35 with a tenth" in line and "right on 98.5 %" in line


def test_images_that_look_alike_when_turned_are_told_where_turns_are_learnt():
    report = population(2, with_labels=False)
    for accuracy, alike, is_told in ((0.9, 0.2, True), (0.9, 0.01, False), (0.3, 0.9, False)):
        found = {"values": [accuracy, accuracy], "mean": accuracy, "std": 0.0}
        report["pretext"] = {
            "rows": "rows held out", "accuracy": found, "alike": alike, "blocks": [],
        }  # fmt: skip
        assert ("Of 20.0 % of the images no run" in tables.score_table(report)) == is_told
