"""Sphinx configuration."""

import dmlkd

project = "dmlkd"
author = "the dmlkd authors"
copyright = "2026, the dmlkd authors"
version = release = dmlkd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
html_theme = "furo"
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!dmlkd).*"),  # other projects' objects
    ("py:class", r"dmlkd\.training\.processes\.T"),
    ("py:.*", r"dmlkd\.config\.(schema\.(_Section|Annotated|named)|yaml_source\.Keys)"),
]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
