import pytest

from vsa_core.hub.card import accuracy_table, model_card
from vsa_core.hub.markdown import markdown_table


def test_columns_line_up_words_left_and_numbers_right():
    table = markdown_table(["model", "n", "accuracy"], [["MIMOConv-28-10", "2", "95.1"], ["WRN", "16", "9"]], left={"model"})
    assert table == (
        "| model          |  n | accuracy |\n"
        "| -------------- | -: | -------: |\n"
        "| MIMOConv-28-10 |  2 |     95.1 |\n"
        "| WRN            | 16 |        9 |\n"
    )


def test_a_table_without_rows_and_cells_as_they_are():
    assert markdown_table(["n"], []) == "|  n |\n| -: |\n"
    assert markdown_table(["n"], [["a|b"]]) == "|   n |\n| --: |\n| a|b |\n"


@pytest.mark.unchecked
def test_rows_of_another_length():
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        markdown_table(["a", "b"], [["1"]])


def test_a_card_says_what_its_caller_says():
    card = model_card(
        "numnets",
        "net",
        tags=["a", "b"],
        about="A network of [this paper](https://example.org).",
        facts={"kind": "dense", "layers": 12},
        accuracy=accuracy_table("rows", {"2 x 2": 0.5}),
        use="import numnets",
        command=None,
    )
    assert (
        card
        == """---
library_name: numnets
license: apache-2.0
tags:
- a
- b
---

# net

A network of [this paper](https://example.org).

| kind  | layers |
| ----- | -----: |
| dense |     12 |

## Accuracy

| rows per pass | test accuracy |
| ------------: | ------------: |
|         2 x 2 |       50.00 % |

## Use

`pip install 'numnets[hub]'`, then

```python
import numnets
```

## Training

No command was given.
"""
    )
