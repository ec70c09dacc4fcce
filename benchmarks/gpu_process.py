"""The processes of gpu.py: each within a limit, and none left behind."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GRACE = 5  # seconds between being asked to stop and being stopped


class Process:
    """A process and those that it starts: they end together."""

    started = []

    def __init__(self, command, environment, log):
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )
        self.started.append(self)

    def wait_until(self, end: float) -> int | str:
        """Its exit status, or "cut". Asked to stop first: pytest then still writes its report."""
        try:
            return self.process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            return "cut"
        finally:
            self.kill()

    def kill(self):
        if self in self.started:
            self.started.remove(self)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
