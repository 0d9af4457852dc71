"""Model cards: what somebody who finds a network on the hub needs to know."""

import re
from collections.abc import Mapping, Sequence

from vsa_core.hub.markdown import markdown_table

__all__ = ["accuracy_table", "fenced", "model_card"]


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
    """Write the card of a network: what it is, its accuracy, how to load it and how it was trained.

    Args:
        library: the package that loads the network.
        name: name of the network or its repository.
        tags: words that the hub finds the network by.
        pipeline: the hub's name for the network's task.
        about: a complete sentence on what the network does, with links to its source.
        facts: sizes of the network by name.
        accuracy: table of accuracies, from `accuracy_table`.
        use: Python code that loads the network and predicts.
        command: command that trained the network.
    """
    task = [f"pipeline_tag: {pipeline}"] if pipeline else []
    front = "\n".join([f"library_name: {library}", "license: apache-2.0", *task, "tags:", *(f"- {tag}" for tag in tags)])
    words = [fact for fact, value in facts.items() if isinstance(value, str)]
    return f"""---
{front}
---

# {name}

{about}

{markdown_table(list(facts), [[str(value) for value in facts.values()]], left=words)}
## Accuracy

{accuracy}
## Use

`pip install '{library}[hub]'`, then

{fenced(use, "python")}

## Training

{fenced(command) if command else "No command was given."}
"""


def accuracy_table(inputs: str, accuracy: Mapping[str, float]) -> str:
    """Write a table with a row for each number of inputs per pass, in the order given, or a sentence if there is none.

    Raises:
        ValueError: an accuracy is not a share from 0 to 1.
    """
    for number, share in accuracy.items():
        if not 0 <= share <= 1:
            raise ValueError(f"accuracy for {number} {inputs} per pass is {share}, expected a share from 0 to 1")
    rows = [(number, f"{100 * share:.2f} %") for number, share in accuracy.items()]
    return markdown_table([f"{inputs} per pass", "test accuracy"], rows) if rows else "No accuracy was given.\n"


def fenced(code: str, language: str = "bash") -> str:
    """Write a block of code in Markdown, with a fence longer than any inside."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", code))]))
    return f"{fence}{language}\n{code.strip()}\n{fence}"
