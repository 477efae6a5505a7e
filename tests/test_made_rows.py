"""The runs that show how good made rows are: trained once, gone on with, and written as tables."""

import json
import shutil
import sys

import numpy as np
import pytest
from test_scripts import ROOT, script

from deepclust_jax import profiles
from deepclust_jax.metrics import classifier
from deepclust_jax.report import pretext, run_directory

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
import train_deep_kmeans

MADE = script("made_rows")
TINY = "--hidden 8 8 --embed-dim 2 --epochs 1 --limit 60"


def within(folder, patch):
    """The script with small runs, its results and directories in a folder. -> that of results."""
    patch.setattr(MADE.reproduce, "ROOT", folder)
    patch.setattr(MADE, "RESULTS", folder / "results" / "made_rows")
    patch.setattr(classifier, "_STEPS", 20)
    patch.setattr(run_directory, "_write_figures", lambda *given: None)
    patch.setitem(MADE.RUNS, "usps-few", f"train_gan.py --data ring_8 {TINY}")
    patch.setitem(MADE.RUNS, "ring_8", f"train_gan.py --data ring_8 {TINY}")
    patch.setitem(MADE.LEARNERS, "usps-few", ("autoencoder --epochs 1 --hidden 8",))
    return folder / "results" / "made_rows"


@pytest.fixture
def results(tmp_path, monkeypatch):
    return within(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        within(folder, patch)
        assert MADE.main(["--runs", "ring_8", "usps-few", "--seeds", "1"]) == 0
    return folder


@pytest.fixture
def trained(trained_once, tmp_path, monkeypatch):
    """Results as `results`, with both runs of one seed."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return within(tmp_path, monkeypatch)


def test_runs_are_trained_once_and_shown(trained, capsys):
    results, args = trained, ["--runs", "ring_8", "usps-few", "--seeds", "1"]
    found = {file.stem: json.loads(file.read_text()) for file in results.glob("*.json")}
    assert set(found) == {"ring_8", "usps-few", "usps-few-autoencoder", "usps-few-autoencoder-made"}
    assert found["ring_8"]["command"] == f"train_gan.py --data ring_8 {TINY} --seeds 1"
    with_made = found["usps-few-autoencoder-made"]
    assert (
        "--made runs/made_rows/usps-few-" in with_made["command"]
        and with_made["data"]["made"] == 60
    )
    assert found["usps-few-autoencoder"]["data"]["made"] == 0
    capsys.readouterr()
    assert MADE.main(args) == 0 and capsys.readouterr().out == ""  # nothing is trained again
    near = found["ring_8"]["pretext"]["made"]["near"]["values"]
    table = MADE.table()
    row = next(line for line in table.splitlines() if line.startswith("| ring_8 |"))
    assert f"| {MADE.reproduce.mean(100 * np.array(near))} |" in row and " of 8 |" in row
    scores = [found[f"usps-few-autoencoder{end}"]["external"]["accuracy"] for end in ("", "-made")]
    shown = " | ".join(MADE.reproduce.mean(100 * np.array(s["values"])) for s in scores)
    assert f"| ring_8 | autoencoder | {shown} | 1 |" in table


def test_what_learns_beside_made_rows_is_known_by_the_epochs_for_both(trained, monkeypatch, capsys):
    results = trained
    monkeypatch.setitem(profiles.LEAST_STEPS, "autoencoder", 200)
    monkeypatch.setitem(MADE.LEARNERS, "usps-few", ("autoencoder --batch-size 60 --hidden 8",))
    args = ["--runs", "usps-few", "--seeds", "1"]
    assert MADE.main(args) == 0
    cells = ("usps-few-autoencoder", "usps-few-autoencoder-made")
    assert [read(results, cell)["options"]["epochs"] for cell in cells] == [200, 100]
    shutil.rmtree(results.parents[1] / "runs")
    capsys.readouterr()
    assert MADE.main(args) == 0 and capsys.readouterr().out == ""


def read(results, cell):
    return json.loads((results / f"{cell}.json").read_text())


def test_a_run_that_was_stopped_goes_on_and_a_finished_one_is_read(trained, monkeypatch):
    results, args = trained, ["--runs", "ring_8", "--seeds", "1"]
    whole = read(results, "ring_8")
    (folder,) = (results.parents[1] / "runs" / "made_rows").glob("ring_8-*")
    (results / "ring_8.json").unlink()
    called, main = [], train_deep_kmeans.main
    monkeypatch.setattr(train_deep_kmeans, "main", lambda a: called.append(a) or main(a))
    assert MADE.main(args) == 0 and not called  # the report is there
    (results / "ring_8.json").unlink()
    (folder / "report.json").unlink()
    assert MADE.main(args) == 0 and called == [["--resume", "--out", str(folder)]]
    assert read(results, "ring_8")["external"] == whole["external"]


def test_a_run_of_other_defaults_or_of_fewer_seeds_is_trained_again(trained, monkeypatch):
    results, args = trained, ["--runs", "ring_8", "--seeds", "1"]
    profile = profiles.PROFILES["practical"]
    monkeypatch.setitem(profile, "gan", profile["gan"] | {"penalty": 1.25})
    assert MADE.main(args) == 0
    assert read(results, "ring_8")["options"]["penalty"] == 1.25
    assert MADE.main([*args[:-1], "2"]) == 0 and read(results, "ring_8")["n_runs"] == 2
    assert MADE.main(args) == 0 and read(results, "ring_8")["n_runs"] == 2, "not by fewer"


def test_the_game_is_trained_again_where_its_rows_are_gone(trained):
    results, args = trained, ["--runs", "usps-few", "--seeds", "1"]
    shutil.rmtree(results.parents[1] / "runs")
    (results / "usps-few-autoencoder-made.json").unlink()
    assert MADE.main(args) == 0
    text = (results / "usps-few-autoencoder-made.json").read_text()
    assert str(results.parents[1]) not in text, "no path of this machine"


def test_what_learnt_beside_rows_of_another_game_is_gone_though_it_was_stopped(
    trained, monkeypatch
):
    results, args = trained, ["--runs", "usps-few", "--seeds", "1"]
    profile = profiles.PROFILES["practical"]
    monkeypatch.setitem(profile, "gan", profile["gan"] | {"penalty": 1.25})
    run = MADE.kept_runs.run
    stop = lambda file, command: 130 if "made" in file.stem else run(file, command)  # noqa: E731
    monkeypatch.setattr(MADE.kept_runs, "run", stop)
    assert MADE.main(args) == 130
    monkeypatch.setattr(MADE.kept_runs, "run", run)
    assert not (results / "usps-few-autoencoder-made.json").exists()
    assert MADE.main(args) == 0 and (results / "usps-few-autoencoder-made.json").exists()


def test_fewer_seeds_are_asked_for_than_there_are(trained, monkeypatch):
    """Trap: what learns beside made rows is then compared with more seeds without."""
    results, asked = trained, []
    report = read(results, "usps-few-autoencoder") | {"n_runs": 2}
    (results / "usps-few-autoencoder.json").write_text(json.dumps(report))
    (results / "usps-few-autoencoder-made.json").unlink()
    monkeypatch.setattr(MADE.kept_runs, "run", lambda file, command: asked.append(command) or 0)
    assert MADE.main(["--runs", "usps-few", "--seeds", "1"]) == 0
    assert len(asked) == 2 and all("--seeds 2" in command for command in asked)
    assert "train_gan.py" in asked[0] and "--made" in asked[1], "the game too, of one seed here"


def test_a_report_of_an_option_that_is_no_longer_given_is_not_done(trained):
    command = MADE.RUNS["ring_8"]
    file = MADE.cell_file("ring_8")
    assert MADE.kept_runs.is_done(file, command, 1)
    assert not MADE.kept_runs.is_done(file, command.replace(" --limit 60", ""), 1)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--seeds", "0"], "expected --seeds >= 1, found 0"),
        (["--runs"], "expected one of --runs or more, found none"),
    ],
)
def test_nothing_to_do_is_refused(capsys, args, message):
    assert MADE.main(args) == 2
    assert message in capsys.readouterr().err


def test_points_near_a_centre_are_counted_by_the_deviation_of_their_class():
    square = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])  # a deviation of 1
    x = np.concatenate([square, 10 + 2 * square])
    labels = np.repeat([0, 1], 4)
    made = np.array([[[2.9, 0.0], [3.1, 0.0], [10.0, 4.1], [10.0, 3.9], [np.nan, 0.0]]])
    assert pretext.near_centres(made, x, labels)["values"] == [0.4]
