"""Train a network in superposition and show what it bought: `accelerate launch benchmarks/run.py [PRESET] [--flags]`."""

from mimo_benchmarks.__main__ import main

if __name__ == "__main__":
    main()
