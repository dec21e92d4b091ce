"""Commands of the product without the wait for torch: forks of one process that has loaded it.

Imports take 5 s of a core, most commands of tiny models less than one. What runs in a fork is what
would run in a process of its own: the same words, working directory, streams and exit code.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# The rooms of the verbs, and what they import first where it is used.
SERVER = """
import importlib, json, os, sys, traceback
from tuninglab.threads import set_waiting
set_waiting()
from tuninglab import cli
for verb in cli.VERBS.values():
    importlib.import_module(f"tuninglab.{verb.room}")
import peft.tuners.lora.model, matplotlib.figure, tyro
import tuninglab.embedded.scoring, tuninglab.embedded.text_task

def child(asked):
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(asked[name], os.O_RDWR), number)
    sys.stdin = open(0)  # the server's has been read from
    sys.argv = ["tuninglab", *asked["words"]]
    code = 1
    try:
        code = cli.main()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        child(json.loads(line))
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Warm:
    """A process with the product of `root` imported; a context manager.

    Args:
        root: the folder that holds the package.
        environment: what differs from this process's.
    """

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None):
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Warm":
        assert self._said() == "ready"
        return self

    def __exit__(self, *error: object) -> None:
        self.server.communicate()

    def run(
        self,
        words: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        input: str = "",
    ) -> subprocess.CompletedProcess:
        """Run `tuninglab WORDS` and wait for its end."""
        with tempfile.TemporaryDirectory() as folder:
            streams = {name: Path(folder, name) for name in ("stdin", "stdout", "stderr")}
            for name, path in streams.items():
                path.write_text(input if name == "stdin" else "")
            asked = {
                "words": list(words),
                "cwd": str(cwd),
                "environment": dict(environment or {}),
                **{name: str(path) for name, path in streams.items()},
            }
            assert self.server.stdin is not None
            self.server.stdin.write(json.dumps(asked) + "\n")
            self.server.stdin.flush()
            self._said()
            code = int(self._said())
            said = [streams[name].read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(words, code, *said)

    def _said(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()
