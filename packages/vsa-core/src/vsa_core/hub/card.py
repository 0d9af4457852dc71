"""The model card of a network: what somebody who finds it on the hub needs to know."""

import re
from collections.abc import Iterable, Mapping, Sequence


def model_card(
    library: str,
    name: str,
    *,
    tags: Sequence[str],
    pipeline: str | None = None,
    about: str,
    facts: Mapping[str, object],
    accuracy: str,
    use: str,
    command: str | None,
) -> str:
    """The card: what the network is, its accuracy, how to load it and how it was trained.

    Args:
        library: the package that loads the network.
        name: of the network or its repository.
        tags: what the hub finds it by.
        pipeline: the hub's name of its task.
        about: a sentence on what it does, without its end.
        facts: its sizes.
        accuracy: a table of them (`accuracy_table`).
        use: Python that loads it and predicts.
        command: what trained it.
    """
    task = [f"pipeline_tag: {pipeline}"] if pipeline else []
    front = "\n".join([f"library_name: {library}", "license: apache-2.0", *task, "tags:", *(f"- {tag}" for tag in tags)])
    return f"""---
{front}
---

# {name}

{about}, as in [MIMONets (Menet et al., 2023)](https://arxiv.org/abs/2312.02829).

{table(facts, [facts.values()])}

## Accuracy

{accuracy}

## Use

`pip install {library}[hub]`, then

{fenced(use, "python")}

## Training

{fenced(command) if command else "No command was given."}
"""


def accuracy_table(inputs: str, accuracy: Mapping[str, float]) -> str:
    """A row for each number of inputs a pass, in the order given, or a sentence where there is none.

    Raises:
        ValueError: an accuracy is no share from 0 to 1.
    """
    for number, share in accuracy.items():
        if not 0 <= share <= 1:
            raise ValueError(f"accuracy for {number} {inputs} a pass is {share}, expected a share from 0 to 1")
    rows = [(number, f"{100 * share:.2f} %") for number, share in accuracy.items()]
    return table([f"{inputs} a pass", "test accuracy"], rows) if rows else "No accuracy was given."


def table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    titles = list(titles)
    head, *body = (f"| {' | '.join(map(str, row))} |" for row in (titles, *rows))
    return "\n".join([head, f"|{'---|' * len(titles)}", *body])


def fenced(code: str, language: str = "bash") -> str:
    """A block of code, whose fence is longer than any inside."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", code))]))
    return f"{fence}{language}\n{code.strip()}\n{fence}"
