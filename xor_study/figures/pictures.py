"""Whether two files show the same figure, and which software drew it."""

from __future__ import annotations

import re
import zlib
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import ft2font
from matplotlib.image import imread

LEVELS = 2
"""By how many of 255 levels a colour may deviate: with another processor a curve's edge may be shaded otherwise."""

PIXELS = 10
"""How many pixels of a picture may deviate by more."""


def renderer() -> dict[str, str]:
    """Return the versions of what decides how a figure looks."""
    return {
        "matplotlib": matplotlib.__version__,
        "freetype": ft2font.__freetype_version__,
        "fonttools": version("fonttools"),
    }


def difference(one: Path, other: Path) -> str | None:
    """Return in a few words how two files of one figure differ, or None if they show the same.

    PNG files are compared by pixels, with the tolerances `LEVELS` and `PIXELS`; of PDF files the content is compared
    exactly, however it is compressed.

    Args:
        one: a file whose name ends in .png or .pdf.
        other: likewise.
    """
    if one.read_bytes() == other.read_bytes():
        return None
    try:
        return _pixels(one, other) if one.suffix == ".png" else _content(one, other)
    except (OSError, SyntaxError, ValueError, zlib.error) as error:  # SyntaxError: Pillow's for a damaged PNG
        return f"can't be read ({error})"


def _pixels(one: Path, other: Path) -> str | None:
    before, now = (np.rint(255 * np.asarray(imread(path))).astype(int) for path in (one, other))
    if before.shape != now.shape:
        sizes = (f"{picture.shape[1]} x {picture.shape[0]} pixels" for picture in (before, now))
        return " and ".join(sizes)
    off = int((np.abs(before - now).max(axis=-1) > LEVELS).sum())
    return f"{off:,} pixels" if off > PIXELS else None


def _content(one: Path, other: Path) -> str | None:
    before, now = _parts(one), _parts(other)
    if len(before) != len(now):
        return f"{len(before)} and {len(now)} parts"
    off = sum(part != counterpart for part, counterpart in zip(before, now, strict=True))
    return f"{off} of {len(now)} parts" if off else None


def _parts(path: Path) -> list[bytes]:
    """Return the objects of a PDF file, uncompressed; lengths and offsets are left out, which compression changes."""
    parts = []
    for whole in re.findall(rb"\d+ 0 obj\n(.*?)\nendobj", path.read_bytes(), re.DOTALL):
        head, _, body = whole.partition(b"\nstream\n")
        head, body = re.sub(rb"/Length \d+|^\d+$", b"", head), body.removesuffix(b"\nendstream")
        parts.append(head + (zlib.decompress(body) if b"/FlateDecode" in head else body))
    return parts
