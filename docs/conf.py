"""Sphinx: furo, MyST, a gallery whose examples run when the docs are built, and the API from the docstrings."""

import importlib.metadata
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
