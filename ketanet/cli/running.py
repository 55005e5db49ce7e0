"""Running a command: exit codes, errors in one line, warnings and progress on stderr."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn

from ketanet.cli import clusters, cohorts, commands  # noqa: F401 (they register themselves)
from ketanet.cli.app import app
from ketanet.cli.printing import RED, YELLOW, styled
from ketanet.errors import InputError, KetanetError, KetanetWarning

_INTERRUPTED, _TERMINATED = 130, 143
_RESUMABLE = ("ingest", "demo", "map", "run", "null")
_SAID = {"said": True}
"""Marks records of what stands on the terminal already."""
_NARROW = 79
"""Columns below which help in panels cuts off the names of options; it then comes as plain text."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the ``ketanet`` command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with _plain_output(debug), _termination() as terminated:
        code = _exit_code(words, debug)
        sys.exit(_TERMINATED if terminated and code == _INTERRUPTED else code)


@contextmanager
def _termination() -> Iterator[list[int]]:
    """Take a first SIGTERM (of a batch system, or a container's end) as Ctrl-C: what was started is ended, and what is
    half-written cleared away; filled when it came."""
    came: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    ours = in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_code(words: list[str], debug: bool) -> int:
    columns = shutil.get_terminal_size().columns
    narrow = columns < _NARROW
    for known in (app, clusters.group):
        known.rich_markup_mode = None if narrow else "rich"
    try:
        code = int(app(words, standalone_mode=False, terminal_width=columns if narrow else None) or 0)
        return _interrupted(words) if code == _INTERRUPTED else code
    except KeyboardInterrupt:
        return _interrupted(words)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _usage_error(error)
        if type(error).__name__ == "Abort":
            return _interrupted(words)
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KetanetError):
            _say_error(text)
            return 2 if isinstance(error, InputError) else 1
        _say_error(f"{type(error).__name__}: {text} (--debug shows where)")
        return 1


def _say_error(text: str) -> None:
    print(f"{styled('error:', RED, sys.stderr)} {text}", file=sys.stderr)
    logging.getLogger("ketanet").error(text, extra=_SAID)


def _interrupted(words: list[str]) -> int:
    resumable = bool(words) and words[0] in _RESUMABLE
    kept = "; finished parts are kept, the same command goes on from there" if resumable else ""
    print(f"stopped{kept}", file=sys.stderr)
    # tasks under way end first; who does not want to wait for them presses again
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _INTERRUPTED


def _usage_error(error: Any) -> int:
    """A word on the command line that does not fit, in one line (a bare ``ketanet`` shows its help)."""
    said = " ".join(str(error.format_message()).split())
    if said and type(error).__name__ != "NoArgsIsHelpError":
        _say_error(f"{said} (--help lists what is allowed)")
    return 2


@contextmanager
def _plain_output(debug: bool) -> Iterator[None]:
    """Warnings and progress as plain lines on stderr, each once."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if debug or issubclass(category, KetanetWarning):
            print(f"{styled('warning:', YELLOW, sys.stderr)} {message}", file=sys.stderr)
            log.warning(str(message), extra=_SAID)

    log, handlers = logging.getLogger("ketanet"), [logging.StreamHandler(sys.stderr), *_log_file()]
    handlers[0].addFilter(lambda record: not hasattr(record, *_SAID))
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    for name in ("distributed", "matplotlib", "nilearn"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # what a computation that was stopped left unasked is logged as an error with its traceback
    logging.getLogger("asyncio").setLevel(logging.ERROR if debug else logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        try:
            yield
        finally:
            for handler in handlers:
                log.removeHandler(handler)
                if isinstance(handler, logging.FileHandler):
                    handler.close()


class _JsonLines(logging.Formatter):
    """A record as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts = {
            "time": when,
            "level": record.levelname.lower(),
            "process": record.process,
            "said": record.getMessage(),
        }
        return json.dumps(facts, ensure_ascii=False)


def _log_file() -> list[logging.Handler]:
    """What ``KETANET_LOG_FILE`` names: a file that log lines are added to, as JSON, for machines that watch runs."""
    path = os.environ.get("KETANET_LOG_FILE")
    if not path:
        return []
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        _say_error(f"KETANET_LOG_FILE is {path}: {error.strerror or error}")
        sys.exit(2)
    handler.setFormatter(_JsonLines())
    return [handler]
