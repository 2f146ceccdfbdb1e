"""The report's plots as inline SVG: loss curves, perplexity ladder, lengths of rows, shares of them that are taught.

The same values give the same bytes. Colours are left to the page, which has a light and a dark palette; text
stays text. A value that is not finite is never drawn; whoever shows the plot writes it out.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator

from loragate.engines.report_text import number
from loragate.histogram import Histogram
from loragate.ladder import Rung
from loragate.record import CurvePoint

MOST_BARS = 16
"""Most rungs drawn in the ladder's plot; the table beside it has them all."""
DRAWABLE = 1e12
"""Largest number a plot is scaled to; anything beyond it is written, not drawn."""
LOG_SPREAD = 30
"""Largest perplexity / smallest one above which the ladder's axis is logarithmic, so that no bar vanishes."""
FEW_POINTS = 4
"""Below this many points a line alone is hard to see, so they are marked."""
LABEL_CHARACTERS = 18
"""Longest label of a bar."""
LONG_TICK = 1e5
"""From here on a tick is written as a power of ten."""
WHOLE_ROW = 101
"""Where the axis of shares ends: behind the bar of 100 percent."""

INK: Final = "#010a02"
GRID: Final = "#010a03"
COLOURS: Final = {
    "ink": INK,
    "grid": GRID,
    "grey": "#010a04",
    "blue": "#010a05",
    "green": "#010a06",
    "orange": "#010a07",
    "red": "#010a08",
}
"""Placeholders that matplotlib writes and that become the page's `var(--plot-ink)` and so on."""

STYLE: Any = {
    "svg.hashsalt": "loragate",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One inline SVG.

    Attributes:
        label: What it shows, for who cannot see it.
        caption: The sentence below it; may be empty.
        body: What stands between the SVG's tags. No text of the record is in it but escaped labels.
    """

    label: str
    caption: str
    viewbox: str
    body: Markup


def loss_plot(curve: Sequence[CurvePoint]) -> Plot | None:
    """Draw train loss by step and held-out loss where it was measured; None where no value can be drawn."""
    train = [(point.step, point.loss if _drawable(point.loss) else math.nan) for point in curve]
    heldout = [(point.step, point.heldout_loss) for point in curve if _drawable(point.heldout_loss)]
    if not heldout and all(math.isnan(loss) for _, loss in train):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(2.9)
        _draw_losses(axes, train, heldout)
        label = f"Lines: train loss at {len(train):,} optimizer steps, held-out loss at {len(heldout):,} of them"
        return _plot(figure, "loss", label, "Train loss at every step; held-out loss where it was measured.")


def ladder_plot(ladder: Sequence[Rung]) -> Plot | None:
    """Draw a bar per rung with its perplexity beside it; None where nothing was measured."""
    rungs = ladder[:MOST_BARS]
    if not rungs:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(0.75 + 0.33 * len(rungs))
        _draw_bars(axes, rungs)
        values = ", ".join(f"{_label(rung.name)} {number(rung.nll.perplexity)}" for rung in rungs)
        caption = "Lower is better. What is made of the tuned model should stay close to it."
        return _plot(figure, "ladder", f"Bars of perplexity: {values}", caption)


def lengths_plot(lengths: Histogram | None, limit: int | None) -> Plot | None:
    """Draw how many rows have how many tokens, and the limit where it is set; None without rows."""
    if lengths is None:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(2.6)
        _draw_histogram(axes, lengths, "blue")
        _draw_limit(axes, limit, lengths.largest)
        axes.set_xlabel("tokens per row")
        label = f"Histogram of {lengths.values:,} rows between {lengths.smallest:,} and {lengths.largest:,} tokens"
        return _plot(figure, "lengths", label, _over(lengths, limit))


def shares_plot(shares: Histogram | None) -> Plot | None:
    """Draw in how many rows how many percent of the tokens are supervised; None without rows."""
    if shares is None:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(2.6)
        _draw_histogram(axes, shares, "green")
        axes.set_xlim(0, max(WHOLE_ROW, shares.start + shares.width * len(shares.counts)))
        axes.xaxis.set_major_locator(MultipleLocator(20))
        axes.set_xlabel("supervised tokens in percent of the row")
        between = f"between {shares.smallest} and {shares.largest} percent of their tokens supervised"
        caption = "Supervised tokens are those the model learns to say; the others are only read."
        return _plot(figure, "shares", f"Histogram of {shares.values:,} rows, {between}", caption)


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) <= DRAWABLE


def _canvas(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.9, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _draw_losses(axes: Axes, train: Sequence[tuple[int, float]], heldout: Sequence[tuple[int, Any]]) -> None:
    marker = "o" if len(train) < FEW_POINTS else ""
    axes.plot(*zip(*train, strict=True), color=COLOURS["blue"], linewidth=1.2, marker=marker, label="train")
    if heldout:
        dots: Any = {"marker": "D", "markersize": 4, "markevery": max(1, len(heldout) // 40)}
        line: Any = {"linewidth": 1, "linestyle": "--", "label": "held-out"}
        axes.plot(*zip(*heldout, strict=True), color=COLOURS["orange"], **dots, **line)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.grid(axis="y")
    axes.legend()


def _draw_bars(axes: Axes, rungs: Sequence[Rung]) -> None:
    values = [rung.nll.perplexity for rung in rungs]
    lengths = [value if _drawable(value) else 0.0 for value in values]
    places = range(len(rungs))
    axes.barh(places, lengths, color=[_colour(rung.name) for rung in rungs])
    axes.set_yticks(places, [_label(rung.name) for rung in rungs])
    axes.set_xlabel("perplexity on held-out rows" + _scale(axes, [length for length in lengths if length]))
    for place, length, value in zip(places, lengths, values, strict=True):
        end = (max(length, axes.get_xlim()[0]), place)
        axes.annotate(number(value), end, xytext=(4, 0), textcoords="offset points", verticalalignment="center")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _scale(axes: Axes, lengths: Sequence[float]) -> str:
    """Fit the axis to the bars; return what its label must say about it."""
    longest = max(lengths, default=1.0)
    if longest <= LOG_SPREAD * min(lengths, default=1.0):
        axes.set_xlim(0, longest * 1.18)
        return ""
    axes.set_xscale("log")
    axes.set_xlim(min(1.0, *lengths), longest**1.25)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.minorticks_off()
    return " (logarithmic)"


def _tick(value: float) -> str:
    return number(value) if value < LONG_TICK else f"{value:.0e}"


def _colour(rung: str) -> str:
    known = {"baseline": "grey", "tuned": "blue", "merged": "green"}
    return COLOURS[known.get(rung, "orange")]


def _label(name: str) -> str:
    """Keep a label short and to the letters that the plot's font has."""
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in name)
    return text if len(text) <= LABEL_CHARACTERS else f"{text[: LABEL_CHARACTERS - 3]}..."


def _draw_histogram(axes: Axes, histogram: Histogram, colour: str) -> None:
    starts = [histogram.start + histogram.width * place for place in range(len(histogram.counts))]
    axes.bar(starts, histogram.counts, width=histogram.width, align="edge", color=COLOURS[colour])
    axes.set_ylabel("rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y")


def _draw_limit(axes: Axes, limit: int | None, longest: int) -> None:
    """Draw the limit unless it lies so far out that the rows would be squeezed into a corner."""
    if limit and limit <= 2 * longest:
        label = f"max_tokens {limit:,}"
        axes.axvline(limit, color=COLOURS["red"], linestyle="--", linewidth=1.2, label=label)
        axes.legend()


def _over(lengths: Histogram, limit: int | None) -> str:
    if not limit:
        return ""
    return f"{lengths.beyond:,} of {lengths.values:,} rows are longer than data.max_tokens = {limit:,}."


def _plot(figure: Figure, name: str, label: str, caption: str) -> Plot:
    file = io.StringIO()
    undated: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=undated)
    head, _, content = file.getvalue().partition("<svg ")[2].partition(">")
    viewbox = head.partition('viewBox="')[2].partition('"')[0]
    body = Markup(_inline(content.rpartition("</svg>")[0], name))  # noqa: S704 - matplotlib escaped its labels
    return Plot(label, caption, viewbox, body)


def _inline(svg: str, name: str) -> str:
    """Fit an SVG into the page: ids of its own, no style that reaches beyond it, the page's colours."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
    svg = svg.replace('xlink:href="#', f'href="#{name}-')
    for colour, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, f"var(--plot-{colour})")
    return svg.strip()
