"""The results of an evaluation: plain values for programs, a table for people, plots for the run in MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.metrics import DisparityErrors
from foundation_stereo_depth.uncertainty import RELIABLE_WITHIN_PX, UncertaintyCounts

Plain = dict[str, Any]
"""Names to plain values, fit for JSON."""


class Score(NamedTuple):
    """Sums and counts of one method over any number of scenes; two of them merge exactly.

    Attributes:
        errors: over all pixels with known ground truth.
        visible, occluded: over those of them that are visible in both views, or in the left one only; of no pixel where
            the benchmark has no mask.
        matched: over those that the method matched itself rather than filled; of no pixel where it predicts
            uncertainty.
        uncertainty: None for a method that predicts none.
        latencies_ms: one per scene.
    """

    errors: DisparityErrors
    visible: DisparityErrors
    occluded: DisparityErrors
    matched: DisparityErrors
    uncertainty: UncertaintyCounts | None
    latencies_ms: tuple[float, ...]

    def plus(self, other: "Score") -> "Score":
        """Return the sums of both."""
        return Score(
            self.errors + other.errors,
            self.visible + other.visible,
            self.occluded + other.occluded,
            self.matched + other.matched,
            None if self.uncertainty is None or other.uncertainty is None else self.uncertainty + other.uncertainty,
            self.latencies_ms + other.latencies_ms,
        )

    def to_plain(self) -> Plain:
        """Return all figures; names end in their units. What was not measured is left out."""
        parts = {"non_occluded": self.visible, "occluded": self.occluded}
        plain: Plain = {"pixels": self.errors.valid, **self.errors.figures()}
        plain |= {name: {"pixels": part.valid, **part.figures()} for name, part in parts.items() if part.valid}
        if self.uncertainty is not None:
            plain |= self.uncertainty.figures()
        elif self.errors.valid:
            plain["density_percent"] = 100 * self.matched.valid / self.errors.valid
            plain["where_matched"] = self.matched.figures()
        plain["latency_ms"] = float(np.median(self.latencies_ms))
        return plain


_LEAST_SHARE_OF_BIN = 1e-4  # of all pixels, to be drawn
_SPARSIFICATION_KEYS = ("removed", "by_doubt", "by_oracle", "at_random")
"""Of `SparsificationCurve`'s members in JSON; programs read them, so they stay as they were first named."""


def curves(counts: UncertaintyCounts) -> Plain:
    """Return the reliability and sparsification curves that the figures summarise, as lists."""
    reliability = counts.reliability_curve()
    plain: Plain = {"reliability": {name: values.tolist() for name, values in reliability._asdict().items()}}
    for name, curve in _sparsifications(counts).items():
        plain[name] = {key: np.asarray(value).tolist() for key, value in zip(_SPARSIFICATION_KEYS, curve, strict=True)}
    return plain


def flat_metrics(results: Mapping[str, Plain], prefix: str) -> dict[str, float]:
    """Return `<prefix>/<method>/<figure>` -> value, the names of metrics in MLflow."""
    flat: dict[str, float] = {}
    for method, figures in results.items():
        for name, value in figures.items():
            if isinstance(value, dict):
                if name != "curves":
                    flat |= {f"{prefix}/{method}/{name}/{key}": float(inner) for key, inner in value.items()}
            else:
                flat[f"{prefix}/{method}/{name}"] = float(value)
    return flat


_COLUMNS = {
    "EPE": "epe_px", "RMSE": "rmse_px", "bad-0.5": "bad_0.5_percent", "bad-1": "bad_1_percent",
    "bad-2": "bad_2_percent", "bad-3": "bad_3_percent", "D1": "d1_percent", "NLL": "nll_nat",
    "AUSE": "ause_epe_px", "(random)": "ause_epe_random_px", "68 %": "coverage_68_percent",
    "density": "density_percent", "ms": "latency_ms",
}  # fmt: skip


def table(report: Plain) -> str:
    """Return a table: one line per scene and method, all scenes together, and the calibration of the uncertainty."""
    rows: list[list[str]] = []
    for scene in report["scenes"]:
        rows += [_row(scene["name"], method, scene["results"][method]) for method in scene["results"]]
    for method, figures in report["overall"].items():
        rows.append(_row("ALL", method, figures))
        for part in ("non_occluded", "occluded"):
            if part in figures:
                rows.append(_row("ALL " + part.replace("_", "-"), method, figures[part]))
    header = ["scene", "by", *_COLUMNS]
    used = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows)]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in used]
    lines = [
        "  ".join(row[i].ljust(w) if i < 2 else row[i].rjust(w) for i, w in zip(used, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    lines.insert(len(lines) - sum(row[0].startswith("ALL") for row in rows), lines[1])
    return "\n".join([*lines, "", *_notes(report)])


def _row(name: str, method: str, figures: Plain) -> list[str]:
    values = (figures.get(key) for key in _COLUMNS.values())
    return [name, method, *("" if value is None else f"{value:.2f}" for value in values)]


def _notes(report: Plain) -> list[str]:
    settings, lines = report["settings"], list[str]()
    for method, figures in report["overall"].items():
        if "nll_nat" in figures:
            covered = ", ".join(f"{n} % hold {figures[f'coverage_{n}_percent']:.1f} %" for n in (50, 68, 90, 95))
            lines.append(
                f"{method}: intervals of {covered}; P(|error| < {RELIABLE_WITHIN_PX:g} px) is off by "
                f"{figures['calibration_error_percent']:.1f} % (ECE); AUSE of bad-1 "
                f"{figures['ause_bad_1_percent']:.2f} % (random {figures['ause_bad_1_random_percent']:.2f} %)"
            )
    if report["device"]["network"] and settings["distribution"] is None:
        lines.append("network: predicts no uncertainty")
    size = "native size" if settings["at_native_size"] else f"{settings['width']}x{settings['height']}"
    where = report["device"]["network"] or "on the CPU"
    dataset = settings["dataset"] + (" validation" if settings["split"] == "validation" else "")
    lines.append(
        f"{dataset}, {count_of(len(report['scenes']), 'scene')} at {size}: EPE, RMSE and AUSE in px of that size, NLL "
        f"in nats, ms per pair (median), the rest in %; {where}"
    )
    return lines


def reliability_figure(counts: Mapping[str, UncertaintyCounts], title: str) -> Figure:
    """Plot the observed fraction of |error| < 1 px over the predicted probability; calibrated is the diagonal.

    Bins with hardly any pixels are left out, as their fraction means nothing.
    """
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    for method, each in counts.items():
        curve = each.reliability_curve()
        enough = curve.pixels >= _LEAST_SHARE_OF_BIN * curve.pixels.sum()
        axis.plot(curve.predicted[enough], curve.observed[enough], marker="o", label=method)
        axis.bar(curve.predicted, curve.pixels / curve.pixels.sum(), width=0.03, alpha=0.3, label="fraction of pixels")
    axis.set(
        title=title,
        xlabel=f"predicted P(|error| < {RELIABLE_WITHIN_PX:g} px)",
        ylabel="observed fraction",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axis.legend()
    return figure


def sparsification_figure(counts: Mapping[str, UncertaintyCounts], title: str) -> Figure:
    """Plot the error of the remaining pixels after removing the most uncertain, with the oracle and random orders."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    axes: Sequence[Any] = figure.subplots(1, 2)
    names = {"sparsification_epe": "EPE, px", "sparsification_bad_1": "bad-1, %"}
    for method, each in counts.items():
        for axis, (kind, curve) in zip(axes, _sparsifications(each).items(), strict=True):
            removed, by_uncertainty, by_oracle, at_random = curve
            axis.plot(removed, by_uncertainty, label=f"{method} (AUSE {curve.ause:.3g})")
            axis.plot(removed, by_oracle, linestyle=":", label="oracle")
            axis.axhline(at_random, color="grey", linestyle="--", label=f"random (AUSE {curve.ause_random:.3g})")
            axis.set(xlabel="fraction of pixels removed", ylabel=names[kind] + " of the rest")
            axis.set(xlim=(0, 1), ylim=(0, None))
            axis.legend()
    return figure


def _sparsifications(counts: UncertaintyCounts) -> dict[str, Any]:
    return {
        "sparsification_epe": counts.sparsification_of_epe(),
        "sparsification_bad_1": counts.sparsification_of_bad(),
    }
