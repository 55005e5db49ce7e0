"""The application that the commands belong to."""

from __future__ import annotations

from typing import Final

import typer

# panels of the list of commands
COHORTS: Final = "Cohorts"
STUDIES: Final = "Studies"
STEPS: Final = "Single steps"
CLUSTERS: Final = "Clusters"

app = typer.Typer(
    name="ketanet",
    help="Functional connectivity network mapping: coordinates and a cohort in, labelled networks out.",
    epilog="--debug, anywhere, shows the traceback of an error. Exit codes: 0 done, 1 failed, 2 bad input.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
