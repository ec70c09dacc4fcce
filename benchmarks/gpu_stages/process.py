"""The processes of gpu.py: each within a limit, and none left behind."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A process and those that it starts: they end together."""

    started = []

    def __init__(self, command, environment, log):
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )
        self.started.append(self)

    def wait_until(self, end: float, grace: float = 0) -> int | str:
        """Its exit status, or "cut". grace: seconds that it has to stop when asked to."""
        try:
            return self.process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            if grace:
                self.process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(grace)
            return "cut"
        finally:
            self.kill()

    def kill(self):
        if self in self.started:
            self.started.remove(self)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
