"""Run command lines one after the other in this process, and tell what each did.

A line of stdin is a list of arguments as JSON; a line of stdout is the exit code, the outputs and
the largest size of the process in bytes.
"""

import contextlib
import io
import json
import os
import resource
import sys
from tempfile import TemporaryFile
from typing import Any

from attnviz.cli.main import main

MOST_MEMORY = 12 << 30
"""Bytes of addresses, of which torch takes some; a bound for the machine's sake."""


def run_case(arguments: list[str]) -> dict[str, Any]:
    """Run a command line, and return its exit code, its outputs, and the largest size so far."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: Any = 0
    with TemporaryFile() as native:
        kept = os.dup(2)
        os.dup2(native.fileno(), 2)  # what libraries write themselves is an output too
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                try:
                    main.main(arguments)
                except SystemExit as ended:
                    code = ended.code
                except BaseException as error:
                    code = f"Traceback: {type(error).__name__}: {error}"
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        native.seek(0)
        told = native.read().decode(errors="replace")
    texts = [stream.buffer.getvalue().decode(errors="replace") for stream in (output, errors)]
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"code": code, "output": texts[0], "errors": texts[1] + told, "size": size}


def answer_requests() -> None:
    """Answer all requests on stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    requests = os.fdopen(os.dup(0))
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    sys.stdin = os.fdopen(0)
    for line in requests:
        json.dump(run_case(json.loads(line)), answers)
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    answer_requests()
