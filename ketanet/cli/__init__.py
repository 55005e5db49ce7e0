"""The command line."""

from ketanet.cli.running import main

__all__ = ["main"]
