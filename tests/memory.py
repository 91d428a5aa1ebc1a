"""What a process holds; it imports nothing heavy, for tests that measure in a process of their own."""

import re
import resource
import sys
from pathlib import Path


def peak_mb(reset: bool = False) -> float:
    """The most memory that this process held since the last reset (on Linux) or since its start."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return float(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1e3
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
