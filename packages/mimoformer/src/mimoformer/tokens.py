"""From text to token ids, by the tokenizer that a network's configuration names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from mimoformer.config import MIMOFormerConfig
from mimoformer.inference import network_of

__all__ = ["tokenize"]

Text = str | bytes


def tokenize(
    model: nn.Module | MIMOFormerConfig, texts: Sequence[Text | Sequence[Text]]
) -> tuple[Int64[Tensor, "count *pair l"], Bool[Tensor, "count *pair l"]]:
    """Turn texts into token ids and their mask, as `predict` takes them, by the network's own tokenizer.

    - bytes: the id of a byte of the UTF-8 text is byte + 1.
    - words: the text is split at white space, parentheses are passed over, and the id of `words[i]` is i + 1.
    - ids: the text holds the ids, separated by white space; all of them are real, 0 too.

    Texts are cut at the network's max_length and padded with id 0 to the longest one.

    Args:
        model: the network, or its configuration.
        texts: the texts; for the head pair, pairs of texts.

    Returns:
        Ids (count l), or (count 2 l) for the head pair, and a mask of that shape, True where a token is real.

    Raises:
        ValueError: the network has no tokenizer for texts, a word is unknown, an id is outside the vocabulary, bytes are not
            UTF-8 where text is needed, or an entry is not a pair where pairs are needed.
        TypeError: `texts` is one text instead of a sequence, or an entry is not text.

    >>> config = MIMOFormerConfig(tokenizer="words", words=("[MAX", "[MIN", "]", "1", "2"))
    >>> tokenize(config, ["[MAX 1 2 ]", "( [MIN 2 ] )"])[0]
    tensor([[1, 4, 5, 3],
            [2, 5, 3, 0]])
    """
    config: MIMOFormerConfig = model if isinstance(model, MIMOFormerConfig) else network_of(model).config
    if config.tokenizer not in ENCODERS:
        found = "no tokenizer" if config.tokenizer is None else f"the tokenizer {config.tokenizer}"
        hint = "its ids are grey levels + 1, row by row; " if config.tokenizer == "pixels" else ""
        raise ValueError(f"this network has {found}, which takes no text; {hint}give token ids to predict yourself")
    if isinstance(texts, Text):
        raise TypeError(f"texts is one {type(texts).__name__}; expected a sequence of texts, such as [text]")
    flat: list[Any] = flatten_pairs(texts) if config.head == "pair" else list(texts)
    for text in flat:
        if not isinstance(text, Text):
            raise TypeError(f"texts holds a {type(text).__name__}; expected str or bytes")
    rows = [ENCODERS[config.tokenizer](text, config)[: config.max_length] for text in flat]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    mask = torch.arange(max([1, *map(len, rows)])) < lengths[:, None]
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    tokens[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.long)
    if config.head == "pair":
        tokens, mask = (rearrange(x, "(count pair) l -> count pair l", pair=2) for x in (tokens, mask))
    return tokens, mask


def flatten_pairs(pairs: Sequence[Any]) -> list[Any]:
    """Pairs of texts as a flat list; ValueError where an entry is not a pair."""
    for pair in pairs:
        if isinstance(pair, Text) or len(pair) != 2:
            raise ValueError(f"texts holds {pair!r}; the head pair needs pairs of texts")
    return [text for pair in pairs for text in pair]


def encode_bytes(text: Text, config: MIMOFormerConfig) -> list[int]:
    """Ids of UTF-8 bytes."""
    return [byte + 1 for byte in (text.encode() if isinstance(text, str) else text)]


def encode_words(text: Text, config: MIMOFormerConfig) -> list[int]:
    """Ids of words."""
    ids = {word: number for number, word in enumerate(config.words or (), 1)}
    words = as_string(text).replace("(", " ").replace(")", " ").split()
    if unknown := [word for word in words if word not in ids]:
        raise ValueError(f"text holds the word {unknown[0]!r}; this network knows {', '.join(ids)}")
    return [ids[word] for word in words]


def encode_ids(text: Text, config: MIMOFormerConfig) -> list[int]:
    """Ids that are written out."""
    ids = []
    for number in as_string(text).split():
        if not number.isascii() or not number.isdecimal() or int(number) >= config.vocab_size:
            raise ValueError(f"text holds {number!r}; expected ids from 0 to {config.vocab_size - 1} between white space")
        ids.append(int(number))
    return ids


def as_string(text: Text) -> str:
    """The text, decoded; ValueError where bytes are not UTF-8."""
    try:
        return text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"text is not UTF-8 ({error}); give str, or bytes in UTF-8") from error


ENCODERS: dict[str | None, Callable[[Text, MIMOFormerConfig], list[int]]] = {
    "bytes": encode_bytes,
    "words": encode_words,
    "ids": encode_ids,
}
