"""Times a process that probes a small stream, against a bare interpreter.

Run: python tests/bench/bench_info.py [runs]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from strategies import sample_stream

CASES = {
    "bare interpreter": "pass",
    "import dataclasses, fractions, pathlib": "import dataclasses, fractions, pathlib",
    "import the whole container": "import semvc.bitstream.container",
    "probe": "from semvc.bitstream.probe import probe; import json, sys;"
    " json.dumps(probe(open(sys.argv[1], 'rb')).to_json())",
    "verify": "from semvc.bitstream.probe import verify; import sys;"
    " verify(open(sys.argv[1], 'rb')).to_json()",
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        stream = Path(folder) / "small.svc"
        stream.write_bytes(sample_stream(segments=4, payload=4000))
        base = 0.0
        for name, code in CASES.items():
            times = []
            for _ in range(runs):
                begun = time.perf_counter()
                subprocess.run([sys.executable, "-c", code, stream], check=True, cwd=root)
                times.append(1000 * (time.perf_counter() - begun))
            base = base or min(times)
            print(
                f"{name:40} min {min(times):6.1f} ms  median {statistics.median(times):6.1f} ms"
                f"  min beyond the interpreter {min(times) - base:6.1f} ms"
            )


if __name__ == "__main__":
    main()
