"""Start the program; slow imports come after the handler of Ctrl-C, so that it always ends in one line."""

import os
import sys
from collections.abc import Sequence

from mimo_benchmarks.cli.streams import lasting_streams


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program: exit code 2 for what cannot work, 1 for training that diverged, 130 for Ctrl-C, 143 for SIGTERM."""
    with lasting_streams():
        try:
            from mimo_benchmarks.cli.main import execute_command

            execute_command(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":  # several processes print only one line
                print("\nInterrupted.", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
