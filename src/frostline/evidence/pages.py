"""HTML pages from the templates beside this file: each is one file that calls nobody."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {".png": "image/png", ".jpg": "image/jpeg"}


def render(template: str, **values: Any) -> str:
    """The page of a template; what is put in is text and no markup, a name that is not given is an error."""
    return _environment().get_template(template).render(**values)


def embed(image: Path) -> str:
    """An image file as an address that holds it whole."""
    return f"data:{KINDS[image.suffix]};base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    made.filters["points"] = lambda value: f"{100 * value:+.2f}"
    return made
