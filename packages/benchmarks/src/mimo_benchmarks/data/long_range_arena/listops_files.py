"""ListOps from the files that Long Range Arena (Tay et al., 2021) published, in lra_release.gz."""

from pathlib import Path
from reprlib import repr as shortened

from mimo_benchmarks.data.long_range_arena.listops import PUBLISHED, SYMBOLS, parse
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.storage.files import there
from mimo_benchmarks.errors import DatasetError


def read_tsv(path: Path, count: int | None = None) -> Sequences:
    """A split in the published form, as basic_train.tsv: the columns Source and Target below these names.

    Args:
        path: of the file.
        count: expressions that it must have; any number if None.

    Raises:
        DatasetError: the file cannot be read, or a line is no expression with its value; names the file, the line and the place.
    """
    if not there(path):
        raise DatasetError(f"{path} is missing: get the file, or generate the set")
    place = {symbol: value for value, symbol in enumerate(SYMBOLS)}
    strings, labels = [], []
    try:
        # what is no ASCII is shown as the wrong symbol that it is
        with path.open(encoding="ascii", errors="surrogateescape") as lines:
            if (header := next(lines, "").rstrip("\n")) != "Source\tTarget":
                raise DatasetError(f"{path}, line 1: {shortened(header)}, not 'Source' and 'Target' with a tab between")
            for number, line in enumerate(lines, 2):
                try:
                    source, _, target = line.rstrip("\n").partition("\t")
                    tokens, value = parse(source)
                    if len(tokens) >= PUBLISHED["max_length"]:
                        raise DatasetError(
                            f"{len(tokens):,} symbols, and no published expression has {PUBLISHED['max_length']:,}"
                        )
                    if target != str(value):
                        raise DatasetError(f"the value is {value}, the file has {shortened(target)}")
                except DatasetError as error:
                    raise DatasetError(f"{path}, line {number}: {error}; get the file anew") from None
                strings.append(bytes(place[token] for token in tokens))
                labels.append(value)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): see to the file, or generate the set") from error
    if count not in (None, len(labels)):
        raise DatasetError(f"{path} has {len(labels):,} expressions, not the {count:,} published: get the file anew")
    if not labels:
        raise DatasetError(f"{path} has no line below the names of its columns: get the file anew")
    return Sequences.of(strings, labels)
