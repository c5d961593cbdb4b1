"""Sphinx's configuration; `pages.py` collects the pages."""

import rljax

project = "rljax"
author = "the rljax developers"
release = version = rljax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"rljax {release}"
default_role = "code"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"
napoleon_use_ivar = True  # else fields of tuples are documented twice
