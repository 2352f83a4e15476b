#!/usr/bin/env python3
"""Takes memory until the kernel kills it (or `--megabytes N` are taken): its turn ends `OutOfMemory`.

Without a memory limit on the container it would take the machine's; so it stops at 4096 MB by default.
"""

import argparse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--megabytes", type=int, default=4096)
limit = parser.parse_args().megabytes
print("This will take a moment.", flush=True)
taken = [b"\1" * (1 << 20) for _ in range(limit)]
raise SystemExit(f"{len(taken)} MB taken and still alive")
