"""Structured logs: a JSON object a line, with a session's name but no audio, no text and no token."""

import json
import logging
import sys
import time
from typing import Any, TextIO

log = logging.getLogger("speechkit.server")


class JsonLines(logging.Formatter):
    """Every record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"event": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Stderr(logging.StreamHandler[TextIO]):
    """Standard error, whatever it is by now."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: where nobody takes the log, a traceback would not be read either."""


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs what happened."""
    log.log(level, event, extra={"fields": fields})


def set_up(level: str = "info") -> None:
    """Lines of this library and of the HTTP server's warnings to standard error."""
    handler = _Stderr()
    handler.setFormatter(JsonLines())
    for name, wanted in (("speechkit", level.upper()), ("uvicorn", "WARNING"), ("asyncio", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(wanted)
