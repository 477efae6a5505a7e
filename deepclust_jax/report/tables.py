"""The table printed at the end of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MISSING = "–"
FIRST = ("accuracy", "nmi", "ari")  # as papers print them; the other scores follow by name
LOST = {  # what the reasons of lost.py mean
    "diverged": "diverged, steps or codes were not finite or made rows lie far beyond real ones; "
    "lower --learning-rate, or that of the pretraining",
    "collapsed": "collapsed, made rows are all alike; lower --learning-rate, or raise --penalty",
    "one cluster": "one cluster has all rows; lower --learning-rate, or that of the pretraining",
    "few classes": "few classes, fewer than half of the clusters, have most rows",
    "narrow": "narrow, made rows are in half of the clusters of real ones or fewer; train longer, "
    "or raise --penalty",
}
# Share of images with turns that are not found which is told, where others are: the network learnt.
ALIKE, LEARNT = 0.05, 0.6
UNLEARNT = 0.99  # share of the variance that an autoencoder leaves; of texts 0.9 is much
BY_HEART = 3.0  # a perplexity of texts trained on that is no longer of their language
PAIRS_BY_HEART = 0.999  # of pairs trained on, told from others; those of one kind are hard to tell
FEW_TEXTS = 5000  # of BBC news 2,225 are too few, of AG News 7,600 enough


def score_table(report: Mapping[str, Any]) -> str:
    """Aligned plain text from `scores.score_population`, one row per score.

    Columns: mean ± std over seeds (the mean alone for one run), the run chosen without labels
    and, if there are labels, the best run by labels, marked as oracle. Scores against labels and
    the agreement between runs (ARI) are in percent, internal scores and the loss as they are.
    With labels a second table shows the method beside simpler ones.
    """
    chosen, best = report["chosen"]["run"], report["oracle"]
    runs = [chosen] if best is None else [chosen, best]
    head = ["score", "mean" if report["n_runs"] == 1 else "mean ± std over seeds"]
    head += [f"chosen without labels (run {chosen})"]
    head += [] if best is None else [f"best by labels (oracle, run {best})"]
    rows = [head]
    if "clusters" in report:
        rows.append(_row("clusters found", report["clusters"], runs, _number))
    for name, score in _ordered(report["external"]):
        rows.append(_row(f"{name} [%]", score, runs, _percent))
    if report["n_runs"] > 1:
        rows.append(_row("agreement [% ARI]", report["agreement"], runs, _percent))
    for name, score in _ordered(report["internal"]):
        rows.append(_row(name, score, runs, _number))
    name = report["objective"].get("name", "final loss")
    rows.append(_row(name, report["objective"], runs, _number))
    lines = [*_align(rows), "", *_comparison(report), report["chosen"]["reason"]]
    if "held_out" in report:
        held_out = report["held_out"]
        shown = _first(held_out["external"], " %")
        lines.append(f"The {held_out['rows']:,} rows held out of training: {shown}")
    if "nuisance" in report:
        found = _first(report["nuisance"], " %")
        lines.append(f"Against the nuisance labels, of which the less the better: {found}")
    lines += _pretext(report.get("pretext"))
    left = _of_sound(report.get("unexplained"))
    if left is not None and left > UNLEARNT:
        lines.append(
            f"The autoencoder leaves {_percent(left)} % of the variance of the rows: nothing is "
            "learnt yet; train it longer, or raise its learning rate."
        )
    lines += _lost(report.get("lost", []))
    if best is not None:
        lines.append("The oracle column picks by labels: an upper bound, not a result.")
    sizes = " ".join(str(size) for size in report["cluster_sizes"])
    lines.append(f"Cluster sizes of run {chosen}: {sizes}")
    if empty := sum(size == 0 for size in report["cluster_sizes"]):
        are = "is" if empty == 1 else "are"
        lines.append(f"{empty} of its {len(report['cluster_sizes'])} clusters {are} empty.")
    return "\n".join(lines)


def _comparison(report: Mapping[str, Any]) -> list[str]:
    """The method, and the vote of its runs, beside the baselines on the same rows and seeds;
    nothing without baselines."""
    if not report.get("baselines"):
        return []
    rows = [["same rows and seeds", *(f"{name} [%]" for name in FIRST)]]
    own = {"name": report["options"]["method"], "external": report["external"]}
    vote = {"name": f"{own['name']}, vote of the runs", **report.get("vote", {})}
    for way in [*report["baselines"], own, *([vote] if "vote" in report else [])]:
        scores = (_row("", way["external"][score], [], _percent)[1] for score in FIRST)
        rows.append([way["name"], *scores])
    return [*_align(rows), ""]


def _measures(made: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, score in made.items():
        is_share = name in ("precision", "recall", "coverage", "near", "copied")
        text, unit = (_percent, " [%]") if is_share else (_number, "")
        lines.append(f"  {name}{unit} {_row('', score, [], text)[1]}")
    return lines


def _some(by_epoch: Mapping[str, Any], most: int = 5) -> list[tuple[str, Any]]:
    """The first, the last, and some between."""
    every = list(by_epoch.items())
    return [
        every[i] for i in sorted({round(j * (len(every) - 1) / (most - 1)) for j in range(most)})
    ]


def _pretext(found: Mapping[str, Any] | None) -> list[str]:
    """What each modality says alone, how well texts or sounds are told, what became of the classes
    of deep_cluster, how made rows compare with real ones, or how well turns are told, in all and by
    class, and the clusters of every block."""
    if found is None:
        return []
    if "ahead" in found:
        own = _row("", found["distance"], [], _number)[1]
        same, mean = (_number(found[name]) for name in ("same", "mean"))
        lines = [
            f"distance from frames told {found['ahead']} ahead, {found['rows']}: {own}; from the "
            f"one heard then {same}, from the mean of all {mean}"
        ]
        reached, simple = _of_sound(found["distance"]), [found["same"], found["mean"]]
        if reached is not None and reached > 0.95 * min(simple):
            lines.append("That is hardly less: nothing is learnt yet; train longer.")
        return lines
    if "pairs" in found:
        return _of_pairs(found["pairs"]) + [
            f"modality {i} ({one['shape']}) alone: {_first(one['external'], ' %')}"
            for i, one in enumerate(found.get("modalities", []), 1)
        ]
    if "perplexity" in found:
        own = _row("", found["perplexity"], [], _number)[1]
        by_frequency, known = found["by_frequency"], found.get("of_trained_on")
        beside = f", of as many trained on {_row('', known, [], _number)[1]}" if known else ""
        lines = [
            f"perplexity, {found['rows']}: {own}{beside}; by frequency {_number(by_frequency)}"
        ]
        for name, agreement in found.get("agreement", {}).items():
            shown = _row("", agreement, [], _percent)[1]
            lines.append(f"agreement with {name} [% ARI]: {shown}")
        # With labels the table has it.
        if "agreement" in found and found["texts"] < FEW_TEXTS:
            lines.append(
                "Few texts: of 2,225, BBC news, k-means on TF-IDF is better; compare with "
                "scripts/cluster_embedding.py on the texts."
            )
        return lines + _of_perplexity(*map(_of_sound, (found["perplexity"], known)), by_frequency)
    if "made" in found:
        lines = [f"{found['compared']:,} made rows beside as many real ones:"]
        lines += _measures(found["made"])
        if "judged" in found:
            accuracy = _percent(found["judged"]["accuracy"])
            lines.append(f"by the features of a classifier that is right on {accuracy} %:")
            lines += _measures(found["judged"]["made"])
        if "stacked" in found:
            classes, modes, apart = (
                _row("", found["stacked"][n], [], _number)[1]
                for n in ("classes", "modes", "divergence")
            )
            lines.append(
                f"of 1,000 stacks of digits 25,600 made rows have {classes} with a tenth of an "
                f"equal share, {modes} at all, by a classifier that is right on "
                f"{_percent(found['stacked']['accuracy'])} % of digits; divergence from equal "
                f"shares {apart}"
            )
        if found["over_training"]:
            by_epoch = "; ".join(
                f"{epoch}: " + " ".join(f"{n} {_number(v)}" for n, v in own.items())
                for epoch, own in _some(found["over_training"])
            )
            lines.append(f"run 0, after epoch {by_epoch}")
        return lines
    if "used" in found:
        used, agreement = (_row("", found[name], [], _percent)[1] for name in ("used", "agreement"))
        return [f"classes in use [%]: {used}; agreement with those before [%]: {agreement}"]
    overall = _row("", found["accuracy"], [], _percent)[1]
    lines = [f"turns found [%], {found['rows']}: {overall} (25 by chance)"]
    if found.get("alike", 0.0) > ALIKE and found["accuracy"]["mean"] > LEARNT:
        lines.append(
            f"Of {_percent(found['alike'])} % of the images no run finds more than half of the "
            "turns: of what looks alike when turned this task learns little."
        )
    if "by_class" in found:
        by_class = " ".join(f"{name} {100 * v:.0f}" for name, v in found["by_class"].items())
        lines.append(f"turns found by class [%]: {by_class}")
    runs = sum(block["chosen"] for block in found["blocks"])
    for i, block in enumerate(found["blocks"], 1):
        scored = f"; {_first(block['external'])}" if "external" in block else ""
        lines.append(f"block {i}: labels {block['chosen']} of {runs} runs{scored}")
    return lines


def _of_perplexity(told: float | None, known: float | None, by_frequency: float) -> list[str]:
    """What a perplexity says, of rows held out where there is one of rows trained on beside."""
    if told is None:
        return []
    if known is None and told < BY_HEART:
        return ["So low, they are known by heart; --held-out shows how other texts are told."]
    if told < 0.9 * by_frequency:
        return []
    if known is not None and known < 0.5 * told:
        return ["Those trained on are known by heart alone; give fewer --epochs, or more texts."]
    return ["That is not well below counting: nothing is learnt yet; train longer."]


def _of_pairs(pairs: Mapping[str, Any]) -> list[str]:
    """How well pairs are told, and what that says."""
    known = pairs.get("of_trained_on")
    beside = f", of as many trained on {_row('', known, [], _percent)[1]} %" if known else ""
    shown = _row("", pairs["told"], [], _percent)[1]
    line = f"own halves told from {pairs['among'] - 1:,} others, {pairs['rows']}: {shown} %{beside}"
    means = _of_sound(pairs["told"]), _of_sound(known)
    return [f"{line}; by chance 50 %", *_of_halves(*means)]


def _of_halves(told: float | None, known: float | None) -> list[str]:
    """What a share of pairs told says, of rows held out where there is one of those trained on."""
    if told is None:
        return []
    if known is None and told > PAIRS_BY_HEART:
        return ["So many, they may be known by heart; --held-out shows how other pairs are told."]
    if told > 0.6:
        return []
    if known is not None and known > 0.9:
        more = "give more pairs, or change them by --augment each"
        return [f"Those trained on are known by heart alone; {more}."]
    return ["That is hardly more than chance: nothing is learnt yet; train longer."]


def _lost(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every reason by which runs are lost."""
    lines = []
    for reason, words in LOST.items():
        shown = ", ".join(
            str(one["run"])
            + ("" if one["epoch"] is None else f" (from epoch {one['epoch']} of {one['phase']} on)")
            for one in runs
            if one["reason"] == reason
        )
        lines += [f"{words}: runs {shown}"] if shown else []
    return lines


def _first(external: Mapping[str, Any], unit: str = "") -> str:
    """Mean ± std of the scores that papers print, in one line."""
    return ", ".join(f"{name} {_row('', external[name], [], _percent)[1]}{unit}" for name in FIRST)


def _ordered(scores: Mapping[str, Any]) -> list[tuple[str, Any]]:
    # Independent of the dict, so that a report read back from JSON prints like a fresh one.
    rank = {name: i for i, name in enumerate(FIRST)}
    return sorted(scores.items(), key=lambda item: (rank.get(item[0], len(FIRST)), item[0]))


def _row(name: str, score: Mapping[str, Any], runs: list[int], text: Any) -> list[str]:
    mean = text(score["mean"])
    if _value(score.get("std")) is not None and mean != MISSING:
        mean += f" ± {score['std']:.2g}" if text is _number else f" ± {text(score['std'])}"
    return [name, mean, *(text(score["values"][run]) for run in runs)]


def _of_sound(score: Mapping[str, Any] | None) -> float | None:
    """Mean over the runs that have a value, or None where none has."""
    values = [] if score is None else [v for v in map(_value, score["values"]) if v is not None]
    return float(np.mean(values)) if values else None


def _value(x: Any) -> float | None:
    """None for null (as JSON has it) and nan."""
    return None if x is None or not np.isfinite(x) else float(x)


def _percent(x: Any) -> str:
    return MISSING if _value(x) is None else f"{100.0 * x:.1f}"


def _number(x: Any) -> str:
    return MISSING if _value(x) is None else f"{x:#.4g}".rstrip(".")


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
