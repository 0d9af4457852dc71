"""Read ListOps from the files that the Long Range Arena (Tay et al., 2021) published in lra_release.gz."""

from pathlib import Path
from reprlib import repr as shortened

from mimo_benchmarks.data.long_range_arena.listops import PUBLISHED
from mimo_benchmarks.data.long_range_arena.listops_expressions import SYMBOLS, parse_expression
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.storage.files import exists
from mimo_benchmarks.errors import DatasetError
from mimo_benchmarks.progress import progress_bar


def read_listops_file(path: Path, count: int | None = None) -> Sequences:
    """Return the expressions of a published split, such as basic_train.tsv; each is evaluated and must have its label.

    Args:
        path: file with a header line and the columns Source and Target, separated by a tab.
        count: number of expressions that the file must have; None allows any number.

    Raises:
        DatasetError: the file cannot be read, or a line is not an expression with its value; names the file, line and symbol.
    """
    if not exists(path):
        raise DatasetError(f"{path} is missing: download the file, or generate the set")
    place = {symbol: value for value, symbol in enumerate(SYMBOLS)}
    strings, labels = [], []
    try:
        # a byte that is not ASCII is decoded to a symbol that the error message can show
        with (
            path.open(encoding="ascii", errors="surrogateescape") as lines,
            progress_bar(f"reading {path.name}", path.stat().st_size, in_bytes=True) as bar,
        ):
            if (header := next(lines, "").rstrip("\n")) != "Source\tTarget":
                raise DatasetError(f"{path}, line 1: the header is {shortened(header)}, but must be 'Source', a tab, 'Target'")
            for number, line in enumerate(lines, 2):
                try:
                    source, _, target = line.rstrip("\n").partition("\t")
                    tokens, value = parse_expression(source)
                    if len(tokens) >= PUBLISHED["max_length"]:
                        raise DatasetError(
                            f"{len(tokens):,} symbols, but published expressions have fewer than {PUBLISHED['max_length']:,}"
                        )
                    if target != str(value):
                        raise DatasetError(f"the label is {shortened(target)}, but the value of the expression is {value}")
                except DatasetError as error:
                    raise DatasetError(f"{path}, line {number}: {error}; download the file anew") from None
                strings.append(bytes(place[token] for token in tokens))
                labels.append(value)
                bar.update(len(line))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): fix the file, or generate the set") from error
    if count not in (None, len(labels)):
        raise DatasetError(f"{path} has {len(labels):,} expressions, not the {count:,} published: download the file anew")
    if not labels:
        raise DatasetError(f"{path} has no line below its header: download the file anew")
    return Sequences.of(strings, labels)
