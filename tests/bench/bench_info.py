"""Times a process that probes a small stream, against a bare interpreter.

Run: PYTHONPATH=.:tests python tests/bench/bench_info.py [runs]. CPU time is user plus system, which
other work on the machine disturbs less than wall time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from strategies import sample_stream

CASES = {
    "bare interpreter": "pass",
    "import dataclasses, fractions": "import dataclasses, fractions",
    "import semvc.types": "import semvc.types",
    "import semvc.bitstream.container": "import semvc.bitstream.container",
    "probe": "from semvc.bitstream.container import probe; import json, sys;"
    " json.dumps(probe(open(sys.argv[1], 'rb')).to_json())",
    "verify": "from semvc.bitstream.container import verify; import sys;"
    " verify(open(sys.argv[1], 'rb')).to_json()",
}


def measure(code: str, stream: Path) -> tuple[float, float]:
    """Wall and CPU milliseconds of one process, with cached bytecode as in an installed package."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(stream.parent)
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, stream], env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return 1000 * (time.perf_counter() - begun), 1000 * (usage.ru_utime + usage.ru_stime)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        stream = Path(folder) / "small.svc"
        stream.write_bytes(sample_stream(segments=4, payload=4000))
        base = None
        for name, code in CASES.items():
            wall, cpu = zip(*(measure(code, stream) for _ in range(runs)), strict=True)
            base = base or (min(wall), min(cpu))
            print(
                f"{name:34} wall min {min(wall):6.1f} median {statistics.median(wall):6.1f}"
                f"  cpu min {min(cpu):6.1f} ms;  beyond the interpreter:"
                f" wall {min(wall) - base[0]:6.1f}  cpu {min(cpu) - base[1]:6.1f} ms"
            )


if __name__ == "__main__":
    main()
