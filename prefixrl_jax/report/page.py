"""How a report becomes files: a page that opens offline, and its pictures as PNG files.

Style and pictures are inside the page; it has no scripts and no links.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from prefixrl_jax.report import format as formats
from prefixrl_jax.runtime.files import write_text

FILTERS = (
    formats.amount,
    formats.count,
    formats.interval,
    formats.number,
    formats.percent,
    formats.seconds,
    formats.visible,
)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that a template of this folder makes of `values`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # A record may lack any of its parts: a part of a missing part is missing, not an error.
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in FILTERS})
    page = environment.get_template(template).render(**values)
    # Sampled text may hold half of a surrogate pair, which JSON can carry and UTF-8 cannot.
    write_text(path, page.encode("utf-8", errors="replace").decode("utf-8"))


def write_picture(path: Path, image: bytes | None) -> None:
    """Write a PNG file, or remove what an earlier report left there if `image` is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        path.unlink(missing_ok=True)  # it would pass for a figure of this report
    else:
        path.write_bytes(image)


def data_uri(image: bytes | None) -> str | None:
    """Return a PNG image as a URI that holds the image itself; None for None."""
    if image is None:
        return None
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
