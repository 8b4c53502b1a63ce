"""From a Vega-Lite specification to SVG that takes its colours from the page."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from graft.errors import GraftError

Spec = dict[str, Any]

# Colours are names of the style sheet, so that one figure is right in light, in dark and in print.
INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--grid)"
FONT = "system-ui, sans-serif"
_TEXT = {"labelFont": FONT, "titleFont": FONT, "labelColor": INK, "titleColor": INK}
_CONFIG: Spec = {
    "font": FONT,
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "gridColor": GRID,
        "labelColor": MUTED,
    },
    "legend": {**_TEXT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "orient": "top"},
    "header": {**_TEXT, "labelFontSize": 12},
    "title": {"font": FONT, "color": INK, "fontSize": 14, "anchor": "start", "offset": 10},
    "text": {"color": INK, "fontSize": 12},
}
VERSION = "6.4"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_SIZE = re.compile(r'width="[^"]*" height="[^"]*" ')
_PLACE = re.compile(r' (?:transform|d)="[^"]*"')
_FINE = re.compile(r"(\.\d\d)\d+")


class DrawingError(GraftError):
    """A figure cannot be drawn."""


def whole(spec: Spec) -> Spec:
    """A specification with the house's fonts and colours."""
    return {"$schema": _SCHEMA, "config": _CONFIG, **spec}


def draw(spec: Spec) -> Markup:
    """SVG as wide as its place.

    Args:
        spec: in Vega-Lite, without `config`. No mark of it is clipped or has round corners: those have identifiers,
            which would be those of every other figure of the page too.

    Raises:
        DrawingError: it is no specification of Vega-Lite.
    """
    import vl_convert  # 32 MB of library: only when something is drawn

    try:
        svg: str = vl_convert.vegalite_to_svg(whole(spec), vl_version=VERSION)
    except ValueError as error:
        raise DrawingError(f"a figure cannot be drawn: {str(error).splitlines()[0]}") from error
    # A hundredth of a pixel is seen by nobody: the other digits are a tenth of the page.
    svg = _PLACE.sub(lambda place: _FINE.sub(r"\1", place[0]), svg)
    # the size in pixels goes, the view box stays; nothing in a figure can be reached by a link
    return Markup(_SIZE.sub("", svg, count=1).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1))
