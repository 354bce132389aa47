"""Sphinx: furo, MyST, a gallery whose examples run when the docs are built, and the API from the docstrings."""

import importlib.metadata
import re
import warnings

warnings.filterwarnings("ignore", category=UserWarning, module="sphinx_gallery")

project = "invertible"
author = "The invertible authors"
copyright = "2026, The invertible authors"
release = importlib.metadata.version("invertible")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "gallery/*.md5", "gallery/*.json", "gallery/*.ipynb", "gallery/*.py"]
html_theme = "furo"
html_title = f"invertible {release}"
html_static_path = ["images"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_rtype = False
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "abort_on_example_error": True,
}


def _plain_text(app, what, name, obj, options, lines):
    """Docstrings are prose: a star, a bar or a trailing underscore means itself."""
    in_code = False
    for i, line in enumerate(lines):
        in_code = line.lstrip().startswith(">>>") or (in_code and bool(line.strip()))
        if not in_code:
            spans = re.split(r"(`+[^`]*`+)", line)
            spans[::2] = [re.sub(r"(?<!\\)([*|]|(?<=\w)_(?!\w))", r"\\\1", span) for span in spans[::2]]
            lines[i] = "".join(spans)


def setup(app):
    app.connect("autodoc-process-docstring", _plain_text, priority=400)  # before napoleon
