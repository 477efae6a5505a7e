"""Options: command line, files, ranges, and what a run makes of them before it trains."""

import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from deepclust_jax import config, phases, profiles, run, train
from deepclust_jax.report import run_directory

ROOT = Path(__file__).parent.parent
GROUPS = (config.Data, config.Method, config.Network, config.Training, config.Run)
NAMES = [field.name for group in GROUPS for field in dataclasses.fields(group)]


def parsed(line: str) -> config.Options:
    return config.parse(line.split())


def resolved(*args: str, k: int = 3) -> config.Options:
    return config.resolve(config.parse(["--n-clusters", str(k), *args]))


def refusal(*args: str) -> str:
    with pytest.raises(config.ConfigError) as caught:
        resolved(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def complaint(*args: str) -> str:
    """What the command line prints where it exits with 2."""
    printed = io.StringIO()
    with pytest.raises(SystemExit) as caught, contextlib.redirect_stderr(printed):
        config.parse(list(args))
    assert caught.value.code == 2
    return printed.getvalue()


# --- command line


def test_names_are_unique_over_the_groups():
    assert len(set(NAMES)) == len(NAMES) > 20
    assert list(config.flatten(config.Options())) == NAMES


def test_defaults_and_types_of_the_command_line():
    assert config.parse([]) == config.Options()
    options = parsed("--hidden 16 8 --decay 0.5 --out a/b --resume --labels y")
    assert options.network.hidden == (16, 8)
    assert options.training.decay == 0.5
    assert options.run.out == Path("a/b") and options.run.resume
    assert config.flatten(options)["out"] == str(Path("a/b"))
    json.dumps(config.flatten(options))


def test_unknown_option_suggests_the_nearest():
    assert "--pretrain-epochs" in complaint("--pretrain-epoch", "3")
    assert "dkm" in complaint("--method", "dmk")  # the choices are listed


@pytest.mark.parametrize("script", ["train_deep_kmeans", "cluster"])
def test_help_needs_no_jax_and_mentions_every_option(script):
    code = f"""
import runpy, sys
sys.argv = ["{script}.py", "--help"]
try:
    runpy.run_path("scripts/{script}.py", run_name="__main__")
except SystemExit as done:
    heavy = {{"jax", "numpy", "sklearn", "matplotlib"}} & set(sys.modules)
    sys.exit(done.code or sorted(heavy) or None)
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    names = NAMES if script == "train_deep_kmeans" else ["labels_out", "embeddings_out", "limit"]
    if script == "train_deep_kmeans":  # what None stands for, after the options
        assert "practical dcn: --pretrain-epochs 60" in done.stdout.split("run options")[1]
    for name in names:
        assert re.search(rf"--{name.replace('_', '-')}\s", done.stdout), name


def test_help_has_the_defaults_of_the_script_and_the_file_that_are_asked(tmp_path, capsys):
    """Trap: train_rotation.py --help, which said that the method was dcn."""
    (tmp_path / "o.toml").write_text("seeds = 17\n")
    with pytest.raises(SystemExit) as end:
        config.parse(["--method", "rotation", "-h", "--config", str(tmp_path / "o.toml")])
    told = capsys.readouterr().out
    assert end.value.code == 0 and "(default: rotation)" in told and "(default: 17)" in told
    assert told.count("practical rotation: --epochs") == 1
    for more in (["--merge"], ["--seeds", "many"], ["--no-option"], ["--config", "none.toml"]):
        with pytest.raises(SystemExit) as end:
            config.parse([*more, "--help"])
        told = capsys.readouterr()
        assert end.value.code == 0 and told.err == "" and "--no-merge" not in told.out
        assert "(default: dcn)" in told.out


# --- files


def test_toml_and_json_say_the_same(tmp_path):
    toml, js = tmp_path / "o.toml", tmp_path / "o.json"
    toml.write_text('method = "dkm"\nhidden = [16, 8]\nlearning_rate = 1e-05\noverwrite = true\n')
    values = {"method": "dkm", "hidden": [16, 8], "learning_rate": 1e-5, "overwrite": True}
    js.write_text(json.dumps(values | {"resume": False, "alpha": None}))
    expected = parsed("--method dkm --hidden 16 8 --learning-rate 1e-05 --overwrite")
    for file in (toml, js):
        options = config.parse(["--config", str(file)])
        assert options.run.config == file
        run_group = dataclasses.replace(options.run, config=None)
        assert dataclasses.replace(options, run=run_group) == expected


def test_what_a_run_derived_is_derived_anew_for_another_method_or_other_data(tmp_path):
    """Trap: a file of a dcn run, read for dkm, kept the weight that is right for dcn."""
    given = parsed("--data digits --epochs 7 --hidden 16")
    options = config.resolve(given, 1797)
    (tmp_path / "dkm").mkdir()
    found = dataclasses.replace(options.data, n_clusters=10)
    run.write_options(tmp_path, dataclasses.replace(options, data=found), given, {})
    repeat = f"--config {tmp_path / config.FILE}"
    same = parsed(f"{repeat} --seeds 9 --method dcn")
    assert (same.method.weight, same.training.pretrain_epochs) == (2.0, 250)
    dkm = parsed("--method dkm")
    run.write_options(tmp_path / "dkm", config.resolve(dkm, 1797), dkm, {})
    annealed = parsed(f"--config {tmp_path / 'dkm' / config.FILE} --pretrain-epochs 0")
    assert config.resolve(annealed).method.alpha == 0.1
    for change in ("--method dkm", "--profile paper", "--data bbc_news", "--batch-size=64"):
        other = parsed(f"{repeat} {change}")
        assert other.method.weight is None and other.data.n_clusters is None
        assert (other.training.epochs, other.network.hidden) == (7, (16,))  # given
    assert config.resolve(parsed(f"{repeat} --method autoencoder")).training.epochs == 7


def test_the_network_of_an_older_file_is_not_that_of_a_method_on_pairs(tmp_path):
    file = tmp_path / config.FILE
    old = {"method": "autoencoder", "hidden": [500, 500, 2000], "embed_dim": 10, "epochs": 60}
    for hidden, expected in (([500, 500, 2000], (512, 512)), ([64, 32], (64, 32))):
        file.write_text(json.dumps(old | {"hidden": hidden, "derived": ["epochs"]}))
        found = config.resolve(parsed(f"--config {file} --method contrastive"))
        assert found.network.hidden == expected and found.network.embed_dim == 64
        same = config.resolve(parsed(f"--config {file}"))
        assert same.network.hidden == tuple(hidden) and same.network.embed_dim == 10


def test_merging_never_starts_with_the_number_of_classes():
    """Trap: an estimate of the number of clusters that was told it."""
    alone = config.resolve(config.parse(["--data", "digits", "--method", "n2d", "--merge"]))
    assert alone.data.n_clusters == 35
    found = resolved("--method", "contrastive", "--merge", "--n-clusters", "20")
    assert found.data.n_clusters == 20 and found.method.merge
    for method in ("dkm", "info_max", "autoencoder"):
        with pytest.raises(config.ConfigError, match="--method dcn, n2d, contrastive beside --mer"):
            resolved("--method", method, "--merge")


def test_n2d_has_no_epochs_of_its_own():
    with pytest.raises(config.ConfigError, match="expected --pretrain-epochs beside --method n2d"):
        resolved("--method", "n2d", "--epochs", "5")
    alone = resolved("--method", "n2d", "--epochs", "5", "--pretrain-epochs", "0")
    assert alone.training.epochs == 5


def test_noise_is_for_pairs():
    for method in ("contrastive", "info_max"):
        assert resolved("--method", method, "--augment", "noise").method.augment == "noise"
    with pytest.raises(config.ConfigError, match="--augment noise beside --method contrastive or"):
        resolved("--method", "dcn", "--augment", "noise")


def test_resets_that_never_come_are_refused():
    with pytest.raises(config.ConfigError, match=r"expected --resets < 20 \(--epochs\), found 20"):
        resolved("--method", "dcn", "--resets", "20")
    assert resolved("--method", "dcn", "--resets", "19").method.resets == 19


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "o.json"
    file.write_text(json.dumps({"epochs": 3, "hidden": [16, 8, 4], "seeds": 2, "weight": 0.5}))
    for args in (["--config", str(file)], [f"--config={file}"]):
        changed = config.parse([*args, "--epochs", "7", "--hidden", "5", "--weight", "None"])
        assert changed.training.epochs == 7
        assert changed.network.hidden == (5,)
        assert changed.method.weight is None
        assert changed.run.seeds == 2  # from the file


def test_unknown_name_in_a_file_names_the_nearest(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text("pretrain_epoch = 3\n")
    message = refusal("--config", str(file))
    assert "'pretrain_epoch'" in message and "'pretrain_epochs'" in message and str(file) in message
    file.write_text("zzzzzz = 3\n")
    assert "did you mean" not in refusal("--config", str(file))


@pytest.mark.parametrize("name, text", [("o.json", "{"), ("o.json", "[1]"), ("o.toml", "a = ")])
def test_a_file_that_cannot_be_parsed_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert str(tmp_path / name) in refusal("--config", str(tmp_path / name))


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_bytes(b"\xff\xfe")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, make):
    make(tmp_path / "o.toml")
    assert "cannot read --config" in refusal("--config", str(tmp_path / "o.toml"))


def test_a_folder_as_a_file_of_options_names_the_file_of_a_run(tmp_path):
    assert f"of a run give {tmp_path}/config.json" in refusal("--config", str(tmp_path))


def test_what_a_file_gives_and_the_method_has_not_is_left_out_of_the_file(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text('method = "idec"\npretrain_epochs = 20\n')
    found = refusal("--config", str(file), "--method", "contrastive")
    assert f"leave it out here and in {file}" in found
    found = refusal("--method", "contrastive", "--pretrain-epochs", "20")
    assert found.endswith("leave it out")


def test_groups_in_a_file_are_refused(tmp_path):
    (tmp_path / "o.toml").write_text("[data]\nlimit = 5\n")
    assert "found the table 'data'" in refusal("--config", str(tmp_path / "o.toml"))


def test_a_wrong_value_in_a_file_is_refused_in_one_line(tmp_path, capfd):
    file = tmp_path / "o.json"
    file.write_text('{"seeds": "many"}')
    with pytest.raises(config.ConfigError) as caught:
        config.parse(["--epochs", "3", "--config", str(file)])
    assert (
        str(caught.value)
        == f"{file}: found seeds = 'many', which --seeds does not take; see --help"
    )
    assert capfd.readouterr() == ("", "")  # no box around it


@pytest.mark.parametrize("method", phases.METHODS)
def test_what_a_run_writes_reads_back_as_the_same_options(tmp_path, method):
    args = ["--method", method, "--hidden", "16", "8", "--seed", "3", "--out", str(tmp_path)]
    options = resolved(*args)
    run.write_options(tmp_path, options, options, {})
    assert run.read_options(tmp_path) == dataclasses.replace(
        options, run=dataclasses.replace(options.run, config=tmp_path / config.FILE)
    )
    written = json.loads((tmp_path / config.FILE).read_text())
    assert not {"out", "resume", "overwrite", "config", "compilation_cache"} & set(written)


# --- defaults and ranges


@pytest.mark.parametrize("profile", profiles.PROFILES)
@pytest.mark.parametrize("method", phases.METHODS)
def test_resolve_fills_in_what_the_profile_knows_and_nothing_else(method, profile):
    options = config.flatten(resolved("--method", method, "--profile", profile))
    known = profiles.PROFILES[profile][method]
    assert known["epochs"] > 0 or method == "n2d"
    for name in ("pretrain_epochs", "pretrain_learning_rate", "weight", "alpha", *known):
        assert options[name] == known.get(name)


def test_given_options_win_over_the_profile_even_where_they_are_zero():
    options = resolved("--weight", "0", "--pretrain-epochs", "0", "--decay", "0", "--epochs", "0")
    assert options.method.weight == 0
    training = options.training
    assert (training.pretrain_epochs, training.decay, training.epochs) == (0, 0, 0)


def test_few_rows_get_more_epochs_unless_a_number_was_given():
    def schedule(n, *args):
        training = config.resolve(config.parse(args), n).training
        return training.pretrain_epochs, training.epochs

    assert schedule(1797) == (250, 88)  # 8 steps per epoch: 2000 and 700
    assert schedule(9298) == schedule(70_000) == (60, 20)
    assert schedule(100) == (2000, 700)  # one step per epoch
    assert schedule(1797, "--batch-size", "64") == (69, 25)  # 29 steps per epoch
    assert schedule(1797, "--pretrain-epochs", "0", "--epochs", "3") == (0, 3)
    assert schedule(1797, "--epochs", "5") == (250, 5)
    assert schedule(1797, "--method", "autoencoder") == (None, 250)
    assert schedule(1797, "--profile", "paper") == (50, 50)


def test_the_run_directory_is_named_after_data_and_method():
    assert resolved("--method", "dkm").run.out == Path("runs/digits-dkm")
    assert resolved("--data", "some/rows.npy").run.out == Path("runs/rows-dcn")
    assert resolved("--out", "x").run.out == Path("x")
    graph = ("--data", "usps", "--method", "contrastive", "--augment", "affine", "--merge")
    assert resolved(*graph).run.out == Path("runs/usps-contrastive-affine-merge")
    kept = resolved("--method", "dec", "--sizes", "even", "--resets", "5")
    assert kept.run.out == Path("runs/digits-dec-even-resets")
    block = resolved("--method", "rotation", "--block", "2")
    assert block.run.out == Path("runs/digits-rotation-block2")


@pytest.mark.parametrize(
    "args",
    [
        "--n-clusters 0",
        "--limit 0",
        "--embed-dim 0",
        "--batch-size 0",
        "--seeds 0",
        "--epochs -1",
        "--pretrain-epochs -1",
        "--seed -1",
        "--weight -0.5",
        "--weight nan",
        "--weight inf",
        "--method dkm --alpha -1",
        "--learning-rate 0",
        "--learning-rate nan",
        "--pretrain-learning-rate inf",
        "--decay 1.5",
        "--decay nan",
        "--hidden 16 0",
        "--hidden",
    ],
)
def test_options_out_of_range_are_named_with_what_was_found(args):
    *_, flag, value = args.split() if args != "--hidden" else ("--hidden", "()")
    message = refusal(*args.split())
    assert flag in message and value.lstrip("-") in message


@pytest.mark.parametrize(
    "args",
    [
        "--method autoencoder --weight 1",
        "--method autoencoder --pretrain-epochs 5",
        "--method autoencoder --pretrain-learning-rate 0.1",
        "--method autoencoder --alpha 0",
        "--method dcn --alpha 1",
    ],
)
def test_an_option_that_the_method_does_not_have_is_refused(args):
    _, method, flag, _ = args.split()
    message = refusal(*args.split())
    assert flag in message and f"--method {method}" in message


def test_resume_and_overwrite_exclude_each_other():
    assert "--resume" in refusal("--resume", "--overwrite")


# --- what a run makes of them


@pytest.mark.parametrize(
    "args, expected",
    [
        ("--method autoencoder --epochs 4", [("train", 0, 4, 0, True)]),
        ("--method dcn --pretrain-epochs 0 --epochs 4", [("train", 1, 4, 1, False)]),
        (
            "--method dkm --pretrain-epochs 2 --epochs 4",
            [("pretrain", 0, 2, 0, True), ("train", 1, 4, 1, False)],
        ),
        ("--method contrastive --epochs 4", [("train", 0, 4, 0, True, "rows")]),
        (
            "--method info_max --pretrain-epochs 2 --epochs 4",
            [("pretrain", 0, 2, 0, True, "rows"), ("train", 1, 4, 0, True, "features")],
        ),
        ("--method info_max --pretrain-epochs 0 --epochs 4", [("train", 1, 4, 0, True, "rows")]),
    ],
)
def test_phases(args, expected):
    found = phases.of(resolved(*args.split(), "--hidden", "4"), (20, 5))
    assert [phase._replace(algorithm=None) for phase in found] == [
        phases.Phase(name, stream, None, *rest) for name, stream, *rest in expected
    ]


@pytest.mark.parametrize(
    "args, words",
    [
        ("--augment affine", "--augment affine needs images"),
        ("--network conv", "--network conv needs images"),
        ("--network conv --precision bfloat16", "--precision bfloat16 needs --network mlp"),
        ("--network conv --hidden 8", "--hidden needs --network mlp"),
    ],
)
def test_options_that_do_not_fit_the_rows_are_refused(args, words):
    shape = (20, 8, 8, 1) if "needs --network" in words else (20, 5)
    with pytest.raises(config.ConfigError, match=words):
        phases.of(resolved(*args.split()), shape)


def test_learning_rate_falls_in_a_line_over_the_last_share():
    rates = [float(phases.falling_rate(0.4, 10, 0.4)(step)) for step in range(11)]
    np.testing.assert_allclose(rates, [0.4] * 7 + [0.3, 0.2, 0.1, 0.0], atol=1e-7)
    assert [float(phases.falling_rate(0.4, 10, 0.0)(step)) for step in (0, 9)] == [0.4, 0.4]
    assert float(phases.falling_rate(0.4, 0, 1.0)(0)) == 0.4  # no epochs


def test_the_key_of_a_seed_does_not_depend_on_the_others():
    def bits(*args, seeds=None):
        return np.asarray(jax.random.key_data(run.seed_keys(resolved(*args), seeds)))

    many = bits("--seeds", "5")
    assert len(np.unique(many, axis=0)) == 5
    np.testing.assert_array_equal(bits("--seeds", "2"), many[:2])
    np.testing.assert_array_equal(bits("--seeds", "5", seeds=[3, 1]), many[[3, 1]])
    assert (bits("--seeds", "5", "--seed", "1") != many).any()


def test_another_run_in_the_folder_is_told_by_the_option_that_differs(tmp_path):
    run.write_options(tmp_path, resolved("--epochs", "4"), config.Options(), {})
    run.check_same(tmp_path, resolved("--epochs", "4", "--resume", "--out", "elsewhere"))
    with pytest.raises(config.ConfigError, match="has --epochs 4, found 5"):
        run.check_same(tmp_path, resolved("--epochs", "5"))
    with pytest.raises(config.ConfigError, match="--hidden"):
        run.check_same(tmp_path, resolved("--epochs", "4", "--hidden", "8"))


def test_reading_a_folder_without_a_run_names_it(tmp_path):
    with pytest.raises(config.ConfigError, match=re.escape(str(tmp_path))):
        run.read_options(tmp_path)
    run.write_options(tmp_path, resolved(), config.Options(), {})
    with pytest.raises(config.ConfigError, match="not finished; --resume"):
        run.restore(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(config.ConfigError, match="report.json is damaged"):
        run.restore(tmp_path)


# --- what the run directory holds


def test_cluster_means_and_the_mean_of_all_for_an_empty_cluster():
    z = np.array([[0, 0], [2, 4], [6, 2]], np.float32)
    means = run_directory.cluster_means(z, np.array([1, 1, 2]), 4)
    expected = np.array([[8 / 3, 2], [1, 2], [6, 2], [8 / 3, 2]], np.float32)
    np.testing.assert_allclose(means, expected, rtol=1e-6)
    assert means.dtype == np.float32


def test_peak_memory_is_in_bytes():
    assert 2**24 < run_directory.peak_memory() < 2**40


def test_unknown_methods_from_python_are_named():
    for given, words in (
        (
            {"method": "dnc"},
            "expected --method autoencoder, dcn, dkm, dec, idec, vade, n2d, contrastive, "
            "info_max, rotation, mmdc, deep_cluster, next_token, next_frame, cross_modal, "
            "gan, info_gan, cluster_gan, bi_gan, found 'dnc'",
        ),
        ({"profile": "quick"}, "expected --profile practical, paper, found 'quick'"),
    ):
        with pytest.raises(config.ConfigError, match=words):
            config.resolve(config.Options(method=config.Method(**given)), 100)


def test_rows_are_checked_before_anything_is_traced():
    """From Python too: a change of images for texts, and more classes than a refresh has rows."""
    texts = config.Options(
        data=config.Data(n_clusters=2, scaling="tokens"),
        method=config.Method(method="next_token", augment="affine"),
    )
    with pytest.raises(config.ConfigError, match="--augment affine needs images"):
        phases.of(config.resolve(texts), (50, 64))
    words = config.Options(
        data=config.Data(n_clusters=2), method=config.Method(method="dcn", augment="speech")
    )
    with pytest.raises(config.ConfigError, match=r"--augment speech needs sounds \[t, bands, 1\]"):
        phases.of(config.resolve(words), (50, 20, 40))
    many = config.Options(
        data=config.Data(n_clusters=200), method=config.Method(method="deep_cluster")
    )
    phase = phases.of(config.resolve(many), (50_000, 224, 224, 3))[0]
    rows = np.zeros((2, 224, 224, 3), np.float32)
    state = jax.eval_shape(lambda: train.init(jax.random.key(0), phase.algorithm, rows))
    # A GiB of such images are 1,783, and they are what is clustered where they are streamed.
    assert state.sizes.shape == (1783 // 4,)


def test_the_recipe_for_an_accelerator_is_one():
    options = config.resolve(
        config.parse(["--config", str(ROOT / "scripts/cifar10_resnet18.toml")])
    )
    assert options.network.hidden == profiles.RESNET_18
    options = dataclasses.replace(options, data=dataclasses.replace(options.data, n_clusters=10))
    start, joint = phases.of(options, (50_000, 32, 32, 3))
    assert (start.epochs, start.pairs, joint.epochs, joint.pairs) == (500, "", 100, "features")


def test_widths_that_were_derived_are_derived_anew_for_another_network(tmp_path):
    """Trap: a residual network of two stages of 512, as the perceptron before had."""
    given = ["--method", "contrastive", "--n-clusters", "3"]
    options = config.resolve(config.parse(given))
    run.write_options(tmp_path, options, config.parse(given), {})
    file = ["--config", str(tmp_path / "config.json")]
    assert config.resolve(config.parse(file)).network.hidden == (512, 512)
    again = config.resolve(config.parse([*file, "--network", "resnet"]))
    assert again.network.hidden == profiles.RESNET_18
