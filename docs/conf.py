"""How the documentation is built: ``sphinx-build -W --keep-going docs docs/_build/html``. Nothing is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import ketanet

project = "ketanet"
author = "The ketanet authors"
version = release = ketanet.__version__
language = "en"
smartquotes = False  # an option is --append, not –append

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "ketanet_reference",
    "mathml",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
# names of other libraries, and of modules below the public ones
nitpick_ignore_regex = [("py:.*", r"(?!ketanet\.).*"), ("py:.*", r"ketanet\.\w+\..*"), ("py:mod", r".*")]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = f"ketanet {version}"
html_static_path = ["_static"]
html_css_files = ["ketanet.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("tutorial", "compared", "cite", "changelog")}
html_copy_source = False
html_theme_options = {
    "logo": {"text": "ketanet"},
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
}
copyright = "the ketanet authors; BSD-3-Clause"
