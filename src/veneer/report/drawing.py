"""From a matplotlib figure to an SVG that can stand inside an HTML page, next to others.

matplotlib writes a whole document: namespaces, metadata, a style rule for every element of the page it stands in, ids
that two figures share, colours and fonts of its own. `to_svg` brings that down to the drawing:

  - no XML prologue, namespace, metadata or style rule (inside HTML an `svg` element needs none of them);
  - only ids that something refers to, each beginning with the figure's name;
  - the three greys (`--ink`, `--muted`, `--rule`) and the palette (`--colour-0` and so on) as CSS variables, so that
    dark mode and print reach the figures;
  - no font family: text is text, set in the page's font.

The same figure gives the same bytes. Nothing here uses pyplot or leaves a setting behind.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1c1e22", "#62666e", "#d9dbdf"
"""Text and marks, secondary text, grid lines: the colours in light mode, and what the variables fall back to."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a8a8a", "#5b4ba0")
"""Okabe and Ito's colours, told apart by colour-blind readers, a grey and a violet; written as matplotlib does."""
_NAMES = {INK: "ink", MUTED: "muted", RULE: "rule"} | {hue: f"colour-{n}" for n, hue in enumerate(PALETTE)}
_VARIABLES = {colour: f"var(--{name}, {colour})" for colour, name in _NAMES.items()}

_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "veneer",
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.major.size": 0.0,
}

POINTS_PER_INCH = 72
"""At this resolution a pixel of matplotlib is a unit of the SVG and a font's size is in the same unit."""


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw in Veneer's style, whatever the user's matplotlib is set to; the user's settings come back afterwards."""
    with style.context(["default", _STYLE], after_reset=True), warnings.catch_warnings():
        # The browser sets the text, in a font that has the glyph; matplotlib only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(width: float, height: float, margins: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """Return a figure of the given size and its axes, `margins` (left, right, bottom, top) inside; all in SVG units."""
    left, right, bottom, top = margins
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    return figure, axes


def to_svg(figure: Figure, *, name: str, description: str) -> str:
    """Return the figure as one `svg` element.

    Args:
        figure: what to draw.
        name: begins every id; has to be different for each figure of a page.
        description: what a reader who cannot see the figure is told.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _drop(root, {"metadata", "style"})
    referenced = set(re.findall(r"#([\w.-]+)", buffer.getvalue().decode()))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.text = (element.text or "").strip() if element.tag != "text" else element.text
        element.tail = "\n"
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_rewritten(attributes, name, referenced))
    root.attrib.pop("version")
    root.attrib.update({key: root.attrib[key].removesuffix("pt") for key in ("width", "height")})
    root.attrib.update({"role": "img", "aria-label": description})
    return ElementTree.tostring(root, encoding="unicode").strip()


def as_file(svg: str) -> str:
    """Return an `svg` element of `to_svg` as a file of its own, on white: a picture does not know the page it is on."""
    names = 'xmlns="http://www.w3.org/2000/svg"'
    return svg.replace("<svg ", f'<svg {names} style="background: white; font-family: sans-serif" ', 1) + "\n"


def _local(name: str) -> str:
    """Return an ElementTree name without its namespace."""
    return name.rpartition("}")[2]


def _drop(element: ElementTree.Element, tags: set[str]) -> None:
    for child in list(element):
        if _local(child.tag) in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _rewritten(attributes: dict[str, str], name: str, referenced: set[str]) -> dict[str, str]:
    """Return an element's attributes with our ids, colours and fonts."""
    written: dict[str, str] = {}
    for key, value in attributes.items():
        if key == "id":
            if value in referenced:
                written[key] = f"{name}-{value}"
        elif key == "style":
            written[key] = _restyled(value)
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif key == "d":
            written[key] = " ".join(value.split())
        elif key in ("href", "clip-path"):
            written[key] = value.replace("#", f"#{name}-")
        else:
            written[key] = value
    return written


def _restyled(declarations: str) -> str:
    """Return an inline style with the colours as variables and of the font only the size."""
    kept = [part for part in declarations.split("; ") if not part.startswith("font-family")]
    # matplotlib 3.10 writes size and family in one: "font: 11px 'DejaVu Sans'".
    text = "; ".join(re.sub(r"^font: (?:.* )??([\d.]+px) .*", r"font-size: \1", part) for part in kept)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text
