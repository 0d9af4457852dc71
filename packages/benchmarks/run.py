"""The command mimonets from a checkout: `accelerate launch benchmarks/run.py [PRESET] [--flags]`."""

from mimo_benchmarks.__main__ import main

if __name__ == "__main__":
    main()
