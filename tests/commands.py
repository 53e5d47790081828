"""Runs of attnviz in processes of their own, and what a run that fails must print."""

import os
import pty
import resource
import select
import subprocess
import sys

from tests.conftest import ROOT

HEAVY_PACKAGES = {
    "numpy",
    "rich",
    "torch",
    "transformers",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
}


def require_failure(done: subprocess.CompletedProcess[str], code: int, *told: str) -> None:
    """Require one line on stderr with all these words, nothing on stdout, and this exit code."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for words in told:
        assert words in done.stderr


def run_on_terminal(args: list[str], **environment: str) -> str:
    """Run attnviz on a terminal of 80 columns, and return all that it prints there."""
    parent, child = pty.openpty()
    settings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "attnviz", *args],
        stdin=child,
        stdout=child,
        stderr=child,
        env=settings,
        cwd=ROOT,
    )
    os.close(child)
    data = b""
    while select.select([parent], [], [], 60)[0]:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        data += part
    process.wait()
    os.close(parent)
    return data.decode()


def list_loaded_packages(*args: str) -> set[str]:
    """Run attnviz, and return the heavy packages that it imports."""
    code = (
        "import sys; from attnviz.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\nLOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return HEAVY_PACKAGES & set(done.stdout.rsplit("LOADED", 1)[1].split())


def run_bounded(*args: str, most: int = 4 << 30) -> subprocess.CompletedProcess[str]:
    """Run attnviz with a bound on its memory, in bytes, and one on its time that is far above the need."""

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return subprocess.run(
        [sys.executable, "-m", "attnviz", *args],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=limit_memory,
        timeout=300,
        cwd=ROOT,
    )
