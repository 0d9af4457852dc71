#!/usr/bin/env python3
"""The command mimonets from a checkout: `accelerate launch benchmarks/run.py [PRESET] [--flags]`."""

import sys

if __name__ == "__main__":
    try:
        from mimo_benchmarks.__main__ import main
    except ModuleNotFoundError as error:
        if error.name != "mimo_benchmarks":
            raise
        start = "start `scripts/uv run benchmarks/run.py` in the root of the checkout"
        print(f"mimo_benchmarks is not installed for {sys.executable}: {start}", file=sys.stderr)
        sys.exit(2)
    main()
