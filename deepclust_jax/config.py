"""Options of a run: dataclasses <-> command line and file. Imports no JAX, so --help is quick."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import io
import json
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from deepclust_jax import profiles

FILE = "config.json"  # in a run directory; it marks a folder as one, which may be overwritten
CHECKSUM = "data.sha256"  # in a run directory: of the rows that it was trained on
MADE = "made.sha256"  # in a run directory: rows of --made, how many and their checksum
DERIVED = "derived"  # in that file: the options that nobody gave
# What they were derived from.
_DECIDING = (
    "data", "partner", "kind", "scaling", "partner_scaling", "limit", "made", "method", "profile",
    "network", "batch_size", "pretrain_epochs", "augment", "objective",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data:
    """What is clustered."""

    data: str = "digits"
    """Name of a data set (digits, mnist, fashion_mnist, usps, cifar10, cifar10_60k, pendigits,
    pbmc4k, fsdd, mnist_of_fsdd, emoji, emoji_names, twenty_newsgroups, ag_news, bbc_news, the
    points ring_8 and grid_25, and stacked_mnist, three digits in a picture) or path of a file or
    folder (npy, npz, csv, parquet, jsonl, txt, images, wav), or a finished run, whose codes are
    then clustered."""

    partner: str | None = None
    """Name or path of a second modality, whose row i (of two folders: whose file of the same name)
    is of the same thing as row i of --data; to be clustered together."""

    parts: tuple[str, ...] | None = None
    """Shapes of the modalities, such as 28x28x1, which a row has one behind the other. None: those
    of --data and --partner."""

    n_clusters: int | None = None
    """Number of clusters. None: the documented number of classes of a named set; files need it.
    With --merge the most there can be, and None is 35."""

    labels: str | None = None
    """File (npy, csv, txt) or column with labels, used for scores only. None: those that came with
    the data, if any."""

    kind: Literal["auto", "tabular", "image", "text", "audio"] = "auto"
    """Kind of the rows of a file; auto: by its shape and type."""

    nuisance: str | None = None
    """File (npy, csv, txt) with another labelling of the rows, such as speakers or batches, that
    clusters should not follow; used for scores only. None: that which came with the data, if any
    (the speakers of fsdd)."""

    scaling: Literal["auto", "range", "standard", "codes", "counts", "none", "tokens", "speech"] = (
        "auto"
    )
    """range: to 0..1; standard: mean 0 and deviation 1 per feature; codes: mean 0, all over one
    number; counts: gene counts, log, then standard; tokens: texts as numbers of sub-words; speech:
    spoken words stretched to one length, without what is constant in a voice. auto: range for
    images, standard for tables, codes for a run, tokens for next_token, speech for fsdd."""

    partner_scaling: Literal["auto", "range", "standard", "codes", "counts", "none", "speech"] = (
        "auto"
    )
    """The same of --partner."""

    limit: int | None = None
    """Use a fixed random part of so many rows. None: all."""

    held_out: int = 0
    """Leave the last so many rows out of training; they are labelled and scored all the same. The
    official test part of a named set comes last."""

    made: Path | None = None
    """Finished run of gan or its kin on the same rows, whose made rows are trained on beside them:
    for few samples. They are neither labelled nor scored."""


@dataclasses.dataclass(frozen=True)
class Method:
    """How it is clustered."""

    method: Literal[
        "autoencoder", "dcn", "dkm", "dec", "idec", "vade", "n2d", "contrastive", "info_max",
        "rotation", "mmdc", "deep_cluster", "next_token", "next_frame", "cross_modal",
        "gan", "info_gan", "cluster_gan", "bi_gan",
    ] = "dcn"  # fmt: skip
    """autoencoder: k-means on its code; n2d: a mixture on a neighbour graph of its code.
    contrastive: the same on features that tell pairs of neighbours from other rows; info_max:
    heads on these features that agree on such pairs; rotation: k-means on features that tell how an
    image was turned; mmdc: clusters of one size, trained together with them; deep_cluster: k-means
    on features that tell many small clusters of images apart; next_token: on what a text is about,
    which helps to tell how it goes on; next_frame: on features that tell how a sound does;
    cross_modal: on features on which the modalities of a thing agree; gan: on those that tell rows
    from made ones; info_gan, cluster_gan and bi_gan: by a code that rows are made from, which the
    discriminator or an encoder finds. The others: network
    and centroids trained together; dec without a decoder, vade with a mixture of Gaussians."""

    profile: Literal["practical", "paper"] = "practical"
    """Defaults of the options below: quick and good, or as published."""

    augment: Literal["none", "affine", "photo", "speech", "each", "noise"] = "none"
    """What changes rows while the method trains. affine: random rotation and shift of images, for
    contrastive and info_max also scale and shear; an autoencoder that starts a method has the
    images as they are. photo: random parts of photographs, flipped and in other colours;
    contrastive then pairs each with itself instead of a neighbour, and the practical profile takes
    --network conv. speech: words of --scaling speech as other voices may say them, of other sounds
    some time and some bands are hidden. each: of cross_modal, affine and speech to the modalities
    that are images and words. noise: for contrastive and info_max with rows of any kind, as large
    as twice the distance to a neighbour."""

    weight: float | None = None
    """Weight of the clustering term against the squared error, summed over features (dcn, dkm) or
    as a share of the variance (idec)."""

    metric: Literal["euclidean", "adaptive"] | None = None
    """Distances of the k-means on the autoencoder's code, also where that starts another method.
    adaptive: by the scatter within the clusters, which no linear map of the code changes."""

    alpha: float | None = None
    """Inverse temperature of the soft assignment (dkm); with --pretrain-epochs 0 the first value
    of a schedule that raises it every 5 epochs, as in the paper."""

    objective: (
        Literal["information", "agreement", "invariance", "logistic", "hinge", "wasserstein"] | None
    ) = None
    """Loss of info_max: information (IIC), agreement (SCAN) or invariance (IMSAT); of gan and its
    kin: logistic (Goodfellow), hinge or wasserstein, whose discriminator has five steps for one."""

    penalty: float | None = None
    """Weight of the gradient of the discriminator's logit (gan and its kin), the lower the finer
    the rows are: on real rows (R1), with wasserstein its distance from 1 between real and made
    ones."""

    prior: tuple[float, ...] | None = None
    """Sizes of the clusters, one for each, that rows are made from (info_gan, cluster_gan, bi_gan).
    None: all the same."""

    labelled_by: Literal["code", "kmeans"] | None = None
    """What labels a row, of the same methods: the code that is found for it, or k-means on the
    layer before."""

    sizes: Literal["free", "even", "prior"] | None = None
    """Sizes of clusters while centroids are trained (dcn, dkm, dec, idec). None: free. even: equal
    in a batch, by Sinkhorn; prior: large clusters draw more rows."""

    resets: int | None = None
    """Epochs between resets in BRB's manner, of the same methods: weights of the encoder become 0.8
    of themselves and 0.2 of fresh ones, then k-means. None: never."""

    block: int | None = None
    """Of rotation, counted from 1: whose features are clustered. None: the one whose clusters are
    found again most surely in other rows."""

    merge: bool = False
    """Find the number of clusters: start with --n-clusters and merge what is one, while it trains
    (dcn) or after (n2d, contrastive)."""

    likelihood: Literal["gaussian", "bernoulli"] | None = None
    """Of the rows given the code (vade); bernoulli is for rows in 0..1."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The encoder, and the decoder of an autoencoder."""

    network: Literal["mlp", "conv", "resnet", "gru", "transformer"] | None = None
    """Perceptron, or for images convolutions, of contrastive and info_max also residual ones; of
    next_token and next_frame recurrent units or a transformer. None: mlp, of rotation, mmdc
    and deep_cluster conv, of next_token and next_frame gru."""

    hidden: tuple[int, ...] | None = None
    """Widths of the encoder's hidden layers (mlp); the decoder mirrors them. None: 500 500 2000,
    of contrastive, info_max and cross_modal 512 512. Of rotation, mmdc and deep_cluster those of
    their blocks; None: 16 32 64. Of a resnet those of its stages; None: 64 128 256 512, which is
    ResNet-18. Of next_token and next_frame those of their layers; None: 128."""

    embed_dim: int | None = None
    """Width of the code. None: 10, of contrastive, info_max, cross_modal and next_token 64, of
    rotation, mmdc, deep_cluster, next_frame, gan and its kin 32."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products (mlp). float32: the device's own, which is TF32 on recent GPUs; bfloat16 keeps
    sums and weights in float32."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how fast."""

    pretrain_epochs: int | None = None
    """Epochs of the autoencoder, or of the contrastive features, that start a method; 0 starts from
    random weights."""

    epochs: int | None = None
    """Epochs of the method itself; n2d has none beside those of its autoencoder."""

    batch_size: int | None = None
    """Rows per step. None: 256, of next_token 32."""

    learning_rate: float | None = None
    """Of the method itself: SGD for autoencoder, n2d and the paper's dec, else Adam."""

    pretrain_learning_rate: float | None = None
    """Of the autoencoder's SGD, or the contrastive Adam, that starts a method."""

    decay: float | None = None
    """Share of each phase, at its end, over which the learning rate falls to 0; 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Seeds, files and speed."""

    seeds: int = 5
    """Runs trained together, each with its own key; scores are mean and deviation over them."""

    seed: int = 0
    """Root of all keys. The same seed gives the same runs."""

    out: Path | None = None
    """Run directory. None: runs/DATA-METHOD, and what --augment, --merge, --sizes, --resets and
    --block change."""

    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""

    overwrite: bool = False
    """Delete the run in --out first."""

    config: Path | None = None
    """File with options, .toml or .json; the command line overrides it. Every run writes such a
    file, config.json, which repeats it."""

    compilation_cache: Literal["auto", "on", "off"] = "auto"
    """Keep compiled programs in the user's cache folder. auto: on accelerators only."""


@dataclasses.dataclass(frozen=True)
class Options:
    """All options of a run, by group."""

    data: Annotated[Data, tyro.conf.OmitArgPrefixes] = Data()
    method: Annotated[Method, tyro.conf.OmitArgPrefixes] = Method()
    network: Annotated[Network, tyro.conf.OmitArgPrefixes] = Network()
    training: Annotated[Training, tyro.conf.OmitArgPrefixes] = Training()
    run: Annotated[Run, tyro.conf.OmitArgPrefixes] = Run()


_WITH_CENTROIDS = ("dcn", "dkm", "dec", "idec")
_ON_PAIRS = ("contrastive", "info_max")
MERGED = ("dcn", "n2d", "contrastive")  # which can find the number of clusters
MOST_CLUSTERS = 35  # to merge, where none are given; of DipDECK
_OF_PRETRAINING = ("pretrain_learning_rate", "metric")
_SCHEDULE = ("pretrain_epochs", "pretrain_learning_rate", "epochs", "learning_rate", "decay")


class ConfigError(ValueError):
    """An option or a file of options cannot be used; the message is one line."""


def shapes(parts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Shapes as numbers: ("28x28x1", "10") -> ((28, 28, 1), (10,)).

    Raises:
        ConfigError: a part is no shape.
    """
    found = []
    for part in parts:
        sizes = part.split("x")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ConfigError(f"expected --parts as 28x28x1 or 100, found {part!r}")
        found.append(tuple(map(int, sizes)))
    return tuple(found)


def written(parts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """The inverse of `shapes`: ((28, 28, 1), (10,)) -> ("28x28x1", "10")."""
    return tuple("x".join(map(str, part)) for part in parts)


_HELP = {"-h", "--help"}


def flatten(options: Options) -> dict[str, Any]:
    """The options by their names on the command line, without groups; JSON-able."""
    groups = dataclasses.asdict(options).values()
    flat = {name: value for group in groups for name, value in group.items()}
    return {name: str(v) if isinstance(v, Path) else v for name, v in flat.items()}


def parse(args: Sequence[str] | None = None) -> Options:
    """Options from command-line arguments, over those of `--config FILE`, over the defaults.

    With `--resume --out DIR` and no `--config`, the file is that of the run in DIR. What a run
    derived for its file is derived anew where the command line changes what it was derived from.
    Prints help or a complaint and exits where tyro does.

    Raises:
        ConfigError: the file of options cannot be read, or has unknown names or unfit values.
    """
    args = list(sys.argv[1:] if args is None else args)
    read_words = functools.partial(
        tyro.cli,
        Options,
        description="Cluster data with a trained network, over several seeds.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if not _HELP.isdisjoint(args):
        try:
            read_words(args=["--help"], default=_without_switches(args))
        finally:
            print("\n" + _defaults())
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--out", type=Path)
    finder.add_argument("--resume", action="store_true")
    for name in _DECIDING:
        finder.add_argument("--" + name.replace("_", "-"), "--" + name, dest=name)
    given = finder.parse_known_args(args)[0]
    file = given.config
    if file is None and given.resume and given.out and (given.out / FILE).is_file():
        file = given.out / FILE
    values = {} if file is None else read(file)
    derived = values.pop(DERIVED, [])
    if derived and "sizes" not in values:  # of a time when the network was of no method's own
        derived += [
            name for name in profiles.NETWORK if values.get(name) == plain(profiles.NETWORK[name])
        ]
    before = flatten(Options()) | values
    if any(getattr(given, n) not in (None, str(before[n])) for n in _DECIDING):
        values = {name: value for name, value in values.items() if name not in derived}
    words = [*_as_arguments(values), *args]
    if values:
        try:
            # Some complaints are printed without `console_outputs` too.
            with contextlib.redirect_stderr(io.StringIO()):
                return read_words(args=words, console_outputs=False)
        except SystemExit:
            _check_values(file, values)
    return read_words(args=words)


def _without_switches(args: Sequence[str]) -> Options:
    """What the words beside --help ask for, as the scripts add some; the defaults where they are
    no options. Of a switch the help names the way to turn it on."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            options = parse([word for word in args if word not in _HELP])
    except (ConfigError, SystemExit):
        return Options()
    off = {}
    for group in dataclasses.fields(options):
        own = getattr(options, group.name)
        switches = [f.name for f in dataclasses.fields(own) if getattr(own, f.name) is True]
        off[group.name] = dataclasses.replace(own, **dict.fromkeys(switches, False))
    return dataclasses.replace(options, **off)


def read(file: Path) -> dict[str, Any]:
    """Options by name from a .toml or .json file.

    Raises:
        ConfigError: no such file, not readable, or a name that is no option.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except IsADirectoryError:
        raise ConfigError(
            f"expected a file as --config, found the folder {file}; of a run give {file / FILE}"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read --config {file}: {error.strerror}") from None
    except ValueError as error:  # both parsers raise subclasses
        raise ConfigError(f"cannot read --config {file}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"expected options by name in {file}, found a {type(values).__name__}")
    known = list(flatten(Options()))
    for name, value in values.items():
        if isinstance(value, dict):
            raise ConfigError(
                f"expected options without groups in {file}, found the table {name!r}; "
                "move its options to the top"
            )
        if name not in (*known, DERIVED):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown option {name!r} in {file}{hint}")
    return values


def is_run(folder: Path) -> bool:
    """Whether a run was written there; other projects have a config.json as well."""
    try:
        names = read(folder / FILE)
    except ConfigError:
        return False
    return {"data", "n_clusters", "method", "seeds"} <= set(names)


def run_of(source: str) -> Path | None:
    """The folder of a run, if a source of data is one; the name of a data set is always that.

    Raises:
        ConfigError: it is one, and its options cannot be read.
    """
    from deepclust_jax.data import named

    folder = Path(source)
    if source in named.NAMED:
        return None
    if (folder / CHECKSUM).is_file():  # no folder of pictures: this says what is wrong with it
        read(folder / FILE)
    return folder if is_run(folder) else None


def source_noted(folder: Path) -> Path | None:
    """The run whose codes a finished run was trained on, where it lay then; None of data."""
    from deepclust_jax.data import preprocessing

    try:
        head = json.loads((folder / preprocessing.JSON_FILE).read_text(encoding="utf-8"))
        return Path(head["settings"][preprocessing.OF])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sources_of(folder: Path) -> list[Path]:
    """Where there is a run now by the name of `source_noted`: where it lay then, or beside."""
    named = source_noted(folder)
    if named is None:
        return []
    places = dict.fromkeys((named, folder.resolve().parent / named.name))
    return [place for place in places if is_run(place)]


def lineage(given: Data, *, later: Sequence[Path] = ()) -> list[Data]:
    """Where rows come from: what is given, then of a run what it was trained on, and so on; of
    these only the files and names. `later` are the runs that are trained on its codes.

    Raises:
        ConfigError: a run is made of its own codes.
    """
    folder = run_of(given.data)
    if folder is None:
        return [given]
    if folder.resolve() in later:
        raise ConfigError(f"the run in {folder} is now of its own codes; train it again")
    values = read(folder / FILE)
    names = ("data", "partner", "labels", "nuisance", "made")
    before = Data(**{name: values[name] for name in names if name in values})
    found, later = [given], (*later, folder.resolve())
    for source in sources_of(folder) or [before.data]:
        found += lineage(dataclasses.replace(before, data=str(source)), later=later)
    return found


def _check_values(file: Path, values: dict[str, Any]) -> None:
    """Raise ConfigError for the first value that its option does not take."""
    for name, value in values.items():
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                tyro.cli(Options, args=_as_arguments({name: value}), console_outputs=False)
        except SystemExit:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"{file}: found {name} = {value!r}, which --{flag} does not take; see --help"
            ) from None


def resolve(options: Options, n_rows: int | None = None) -> Options:
    """The options with every None that a profile knows replaced.

    With the number of rows, short epochs of few rows are made up for by more of them.

    Raises:
        ConfigError: an option is out of range, or the method does not have it.
    """
    method = options.method.method
    for name in ("method", "profile"):
        found, known = getattr(options.method, name), _choices(Method, name)
        if found not in known:
            raise ConfigError(f"expected --{name} {', '.join(known)}, found {found!r}")
    defaults = {"network": "mlp", "batch_size": 256}
    defaults |= profiles.PROFILES[options.method.profile][method]
    is_usual = options.method.profile == "practical" and options.network.network in (None, "conv")
    if options.method.augment == "photo" and is_usual:
        defaults = defaults | profiles.PHOTO.get(method, {})
    if options.method.objective == "wasserstein" and method in profiles.GAMES:
        defaults = defaults | {"penalty": profiles.LIPSCHITZ}  # without, that is no distance
    if options.network.network == "resnet":
        defaults = defaults | {"hidden": profiles.RESNET_18}
    if method in _WITH_CENTROIDS:
        defaults = defaults | {"sizes": None, "resets": None}
    if method == "rotation":
        defaults = defaults | {"block": None}
    if options.training.pretrain_epochs == 0:
        defaults = {k: v for k, v in defaults.items() if k not in _OF_PRETRAINING}
        if method == "dkm":
            defaults |= profiles.DKM_ANNEALED
        if method == "n2d":
            defaults |= {"epochs": profiles.AUTOENCODER["epochs"]}
        method += " --pretrain-epochs 0"
    groups: dict[str, Any] = {}
    own = (
        "metric", "weight", "alpha", "objective", "penalty", "prior", "labelled_by", "sizes",
        "resets", "likelihood", "block",
    )  # fmt: skip
    for name in own:
        groups |= _filled(options, "method", name, defaults, method, groups)
    for name in ("network", "hidden", "embed_dim"):
        groups |= _filled(options, "network", name, defaults, method, groups)
    for name in (*_SCHEDULE, "batch_size"):
        groups |= _filled(options, "training", name, defaults, method, groups)
    given, options = options, dataclasses.replace(options, **groups)
    objective, known = options.method.objective, profiles.OBJECTIVES.get(options.method.method)
    if known and objective not in known:
        raise ConfigError(
            f"expected --objective {', '.join(known)} beside --method {method}, found {objective}"
        )
    if method == "n2d" and given.training.epochs:
        raise ConfigError(
            "expected --pretrain-epochs beside --method n2d, which has no epochs of its own, "
            f"found --epochs {given.training.epochs}; leave --epochs out"
        )
    if method == "next_token" and options.data.scaling == "auto":
        options = dataclasses.replace(
            options, data=dataclasses.replace(options.data, scaling="tokens")
        )
    if (method == "next_token") != (options.data.scaling == "tokens"):
        raise ConfigError(
            "expected --scaling tokens beside --method next_token, and no other, found --method "
            f"{method} and --scaling {options.data.scaling}"
        )
    if shapes(options.data.parts or ()) and not options.data.partner and method != "cross_modal":
        raise ConfigError(f"--parts is no option of --method {method}; leave it out")
    if options.data.partner_scaling != "auto" and options.data.partner is None:
        raise ConfigError("--partner-scaling is of a second modality; give it as --partner")
    if method in (*_ON_PAIRS, "cross_modal") and options.training.batch_size == 1:
        raise ConfigError(
            f"expected --batch-size >= 2 beside --method {method}, which compares rows, found 1"
        )
    if options.method.augment == "each" and method != "cross_modal":
        raise ConfigError(
            f"expected --augment each beside --method cross_modal, found {method}; take affine, "
            "speech or noise"
        )
    if options.method.augment == "noise" and options.method.method not in _ON_PAIRS:
        raise ConfigError(
            f"expected --augment noise beside --method {' or '.join(_ON_PAIRS)}, found {method}"
        )
    if options.method.merge:
        if options.method.method not in MERGED:
            raise ConfigError(
                f"expected --method {', '.join(MERGED)} beside --merge, found {method}"
            )
        most = options.data.n_clusters
        most = MOST_CLUSTERS if most is None else most  # never the number of classes
        options = dataclasses.replace(
            options, data=dataclasses.replace(options.data, n_clusters=most)
        )
    if n_rows is not None and options.method.profile == "practical":
        options = dataclasses.replace(options, training=_lengthened(given, options, n_rows))
    if options.run.out is None:
        stem = Path(os.path.abspath(options.data.data)).stem
        how = options.method
        changes = [how.augment] * (how.augment != "none") + ["merge"] * how.merge
        changes += [how.sizes] if how.sizes in ("even", "prior") else []
        changes += ["resets"] if how.resets else []
        changes += [f"block{how.block}"] if how.block else []
        out = Path("runs") / "-".join([stem, how.method, *changes])
        run = dataclasses.replace(options.run, out=out)
        options = dataclasses.replace(options, run=run)
    _check_ranges(options)
    return options


def _choices(group: type, name: str) -> tuple[str, ...]:
    return get_args(get_type_hints(group)[name])


def _filled(options, group, name, defaults, method, groups) -> dict[str, Any]:
    """The group with one None replaced by the default of the method."""
    values = groups.get(group, getattr(options, group))
    given = getattr(values, name)
    if given is not None and name not in defaults:
        flag = name.replace("_", "-")
        file = options.run.config
        where = f" here and in {file}" if file else ""
        raise ConfigError(
            f"--{flag} {given} is no option of --method {method}; leave it out{where}"
        )
    if given is None:
        values = dataclasses.replace(values, **{name: defaults.get(name)})
    return {group: values}


def _lengthened(given: Options, options: Options, n_rows: int) -> Training:
    """The schedule with as many epochs as make the least number of steps, but for those given."""
    training = options.training
    steps = -(-n_rows // min(training.batch_size, n_rows))
    method = options.method.method
    pairs = "photo" if options.method.augment == "photo" else "contrastive"
    start = pairs if method == "info_max" else "autoencoder"
    own = method if method in profiles.LEAST_STEPS else "joint"
    own = pairs if method == "contrastive" else own
    for name, kind in (("pretrain_epochs", start), ("epochs", own)):
        epochs = getattr(training, name)
        if epochs and getattr(given.training, name) is None:
            least = -(-profiles.LEAST_STEPS[kind] // steps)
            training = dataclasses.replace(training, **{name: max(epochs, least)})
    return training


def _check_ranges(options: Options) -> None:
    flat = flatten(options)
    if flat["n_clusters"] is not None and flat["n_clusters"] < 2:
        raise ConfigError(f"expected --n-clusters >= 2, found {flat['n_clusters']}")
    for name in ("limit", "embed_dim", "batch_size", "seeds", "resets", "block"):
        if flat[name] is not None and flat[name] < 1:
            raise ConfigError(f"expected --{name.replace('_', '-')} >= 1, found {flat[name]}")
    for name in ("epochs", "pretrain_epochs", "weight", "alpha", "penalty", "seed"):
        if flat[name] is not None and not 0 <= flat[name] < float("inf"):
            raise ConfigError(f"expected 0 <= --{name.replace('_', '-')} < inf, found {flat[name]}")
    for name in ("learning_rate", "pretrain_learning_rate"):
        if flat[name] is not None and not 0 < flat[name] < float("inf"):
            raise ConfigError(f"expected 0 < --{name.replace('_', '-')} < inf, found {flat[name]}")
    if options.run.seed >= 2**32:
        raise ConfigError(f"expected --seed < 2**32, found {options.run.seed}")
    if not 0 <= options.training.decay <= 1:
        raise ConfigError(f"expected 0 <= --decay <= 1, found {options.training.decay}")
    if not options.network.hidden or min(options.network.hidden) < 1:
        raise ConfigError(f"expected --hidden widths >= 1, found {options.network.hidden}")
    if flat["block"] is not None and flat["block"] > len(options.network.hidden):
        raise ConfigError(
            f"expected --block <= {len(options.network.hidden)}, as many as --hidden has, found "
            f"{flat['block']}"
        )
    if flat["held_out"] < 0:
        raise ConfigError(f"expected --held-out >= 0, found {flat['held_out']}")
    if flat["resets"] is not None and flat["resets"] >= flat["epochs"]:
        raise ConfigError(
            f"expected --resets < {flat['epochs']} (--epochs), found {flat['resets']}: no reset "
            "would come"
        )
    if options.run.resume and options.run.overwrite:
        raise ConfigError("expected --resume or --overwrite, found both")


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def _as_arguments(values: dict[str, Any]) -> list[str]:
    """Options by name as command-line arguments, so that one parser checks both."""
    args: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:  # no option has True as its default
            continue
        items = value if isinstance(value, list | tuple) else [] if value is True else [value]
        args += [flag, *(str(item) for item in items)]
    return args


def _defaults() -> str:
    """What None stands for, by profile and method: the end of --help."""
    lines = ["Where an option says None:"]
    names = (*_SCHEDULE, "metric", "weight", "alpha", "objective", "penalty", "likelihood")
    for profile, methods in profiles.PROFILES.items():
        for method, values in methods.items():
            given = {n.replace("_", "-"): values[n] for n in names if n in values}
            shown = " ".join(
                f"--{n} {v if isinstance(v, str) else format(v, 'g')}" for n, v in given.items()
            )
            lines.append(f"{profile} {method}: {shown}")
    least = {name: format(steps, ",") for name, steps in profiles.LEAST_STEPS.items()}
    lines.append(
        "Where few rows make short epochs, practical has more of them: at least "
        f"{least['autoencoder']} steps of an autoencoder, {least['contrastive']} of contrastive "
        f"features ({least['photo']} of photographs), {least['rotation']} of rotation, mmdc and "
        f"deep_cluster, {least['next_token']} of next_token, next_frame and cross_modal, "
        f"{least['gan']} of gan and its kin, and {least['joint']} of joint training. With "
        "--augment photo: "
        + "; ".join(
            f"{method} " + " ".join(f"--{n.replace('_', '-')} {v}" for n, v in values.items())
            for method, values in profiles.PHOTO.items()
        )
        + ", without another --network. With --objective wasserstein: --penalty "
        + f"{profiles.LIPSCHITZ:g}."
    )
    return "\n".join(lines)
