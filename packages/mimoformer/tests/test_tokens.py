"""From texts to ids, and what a configuration says of its classes and tokenizer."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from test_model import SMALL, small

from mimoformer import MIMOFormerConfig, predict, tokenize

WORDS = ("[MAX", "[MIN", "]", "1", "2")


def config(**options) -> MIMOFormerConfig:
    return MIMOFormerConfig(**{**SMALL, "vocab_size": 300, **options})


def check(found, ids):
    """Ids that are padded with 0 where `ids` says so, on which the mask is False."""
    tokens, mask = found
    assert tokens.tolist() == ids
    assert tokens.dtype == torch.long
    assert torch.equal(mask, tokens > 0)


def test_bytes_are_counted_from_one():
    given = ["aé", b"\x00\xff", ""]
    check(tokenize(config(tokenizer="bytes"), given), [[98, 196, 170], [1, 256, 0], [0, 0, 0]])


def test_words_are_counted_from_one_and_parentheses_passed_over():
    given = ["[MAX 1\n[MIN 2 1 ] ]", "( ( [MIN 2 ) ] )", b"(1)2"]
    check(
        tokenize(config(tokenizer="words", words=WORDS), given),
        [[1, 4, 2, 5, 4, 3, 3], [2, 5, 3, 0, 0, 0, 0], [4, 5, 0, 0, 0, 0, 0]],
    )


def test_ids_are_themselves_and_zero_is_a_token_like_others():
    tokens, mask = tokenize(config(tokenizer="ids"), ["3 0 299", b"1\t0"])
    assert tokens.tolist() == [[3, 0, 299], [1, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.parametrize("options", [{"tokenizer": "bytes"}, {"tokenizer": "words", "words": ("aa",)}, {"tokenizer": "ids"}])
def test_texts_are_cut_at_the_longest_sequence(options):
    text = {"bytes": "a", "words": "aa ", "ids": "97 "}[options["tokenizer"]] * 30
    tokens, mask = tokenize(config(**options), [text])
    assert tokens.shape == (1, 24)
    assert mask.all()


def test_pairs():
    check(tokenize(config(tokenizer="ids", head="pair"), [("1 2", "3"), ("4", "5")]), [[[1, 2], [3, 0]], [[4, 0], [5, 0]]])


def test_no_texts():
    assert tokenize(config(tokenizer="ids"), [])[0].shape == (0, 1)
    assert tokenize(config(tokenizer="ids", head="pair"), [])[1].shape == (0, 2, 1)


@pytest.mark.parametrize("head", ["classes", "pair"])
def test_a_network_predicts_from_what_its_tokenizer_gives(head):
    model = small(vocab_size=300, tokenizer="bytes", head=head)
    texts = ["a text", "", "of some length"]
    tokens, mask = tokenize(model, [(text, "other") for text in texts] if head == "pair" else texts)
    logits = predict(model, tokens, mask=mask)
    assert logits.shape == (3, 5)
    assert logits.isfinite().all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "texts", "error", "named"),
    [
        ({}, ["a"], ValueError, "this network has no tokenizer, which takes no text; give token ids to predict yourself"),
        ({"tokenizer": "pixels"}, ["a"], ValueError, r"the tokenizer pixels, which takes no text; its ids are grey levels \+ 1"),
        ({"tokenizer": "bytes"}, "ab", TypeError, r"texts is one str; expected a sequence of texts, such as \[text\]"),
        ({"tokenizer": "bytes"}, b"ab", TypeError, "texts is one bytes"),
        ({"tokenizer": "bytes"}, [1], TypeError, "texts holds a int; expected str or bytes"),
        ({"tokenizer": "words", "words": WORDS}, ["1", "1 3"], ValueError, r"text holds the word '3'; this network knows \[MAX"),
        ({"tokenizer": "words", "words": WORDS}, [b"\xff"], ValueError, "text is not UTF-8"),
        ({"tokenizer": "ids"}, ["1 300"], ValueError, "text holds '300'; expected ids from 0 to 299"),
        ({"tokenizer": "ids"}, ["1 -1"], ValueError, "text holds '-1'"),
        ({"tokenizer": "ids"}, ["1.0"], ValueError, r"text holds '1\.0'"),
        ({"tokenizer": "ids"}, ["٣"], ValueError, "text holds"),
        ({"tokenizer": "ids", "head": "pair"}, ["1"], ValueError, "texts holds '1'; the head pair needs pairs of texts"),
        ({"tokenizer": "ids", "head": "pair"}, [("1",)], ValueError, r"texts holds \('1',\)"),
    ],
)
def test_texts_that_cannot_be_tokenized(options, texts, error, named):
    with pytest.raises(error, match=named):
        tokenize(config(**options), texts)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"class_names": ("a", "b")}, ValueError, "class_names has 2 names; expected num_classes = 5"),
        ({"class_names": tuple("abcde"), "head": "tokens"}, ValueError, "head tokens has no classes; leave them out"),
        ({"class_names": "abcde"}, TypeError, "class_names is 'abcde'; expected a sequence of strings"),
        ({"class_names": (1, 2, 3, 4, 5)}, TypeError, r"class_names is \(1, 2, 3, 4, 5\); expected a sequence of strings"),
        ({"tokenizer": "letters"}, ValueError, "tokenizer is 'letters'; expected one of bytes, pixels, words, ids"),
        ({"tokenizer": "words"}, ValueError, "words are missing with tokenizer 'words'"),
        ({"words": ("a",)}, ValueError, "words are given with tokenizer None"),
        ({"tokenizer": "bytes", "words": ("a",)}, ValueError, "words are given with tokenizer 'bytes'"),
        ({"tokenizer": "words", "words": ("a", "a")}, ValueError, "words holds 'a'; each must be there once"),
        ({"tokenizer": "words", "words": ("a b",)}, ValueError, "words holds 'a b'"),
        ({"tokenizer": "words", "words": ("(a",)}, ValueError, r"words holds '\(a'"),
        ({"tokenizer": "words", "words": ("",)}, ValueError, "words holds ''"),
        ({"tokenizer": "words", "words": WORDS, "vocab_size": 5}, ValueError, "vocab_size 5 is too small .* it needs 6"),
        ({"tokenizer": "bytes", "vocab_size": 256}, ValueError, "vocab_size 256 is too small for tokenizer bytes; it needs 257"),
        ({"tokenizer": "pixels", "vocab_size": 256}, ValueError, "too small for tokenizer pixels"),
    ],
)
def test_names_and_tokenizers_that_cannot_be_configured(options, error, named):
    with pytest.raises(error, match=named):
        config(**options)


@pytest.mark.unchecked  # JSON has lists where the annotation says tuples
def test_names_come_back_from_json_as_tuples():
    written = config(class_names=["a", "b", "c", "d", "e"], tokenizer="words", words=list(WORDS))
    assert (written.class_names, written.words) == (tuple("abcde"), WORDS)
    assert MIMOFormerConfig(**json.loads(json.dumps(asdict(written)))) == written
    hash(written)


@pytest.mark.parametrize(
    ("options", "label", "capacity"),
    [
        ({}, "MIMOFormer 6x8x64 att", 4),
        ({"m": 1, "n": 3, "variant": "att+mlp", "head_dim": 32}, "MIMOFormer 6x8x32 att+mlp", 3),
        ({"variant": "blurry", "layers": 2}, "MIMOFormer 2x8x64 blurry", 4),
        ({"m": 1, "n": 1}, "Performer 6x8x64", 1),
        ({"m": 1, "n": 1, "attention": "softmax"}, "Transformer 6x8x64", 1),
    ],
)
def test_labels_and_capacities(options, label, capacity):
    assert (MIMOFormerConfig(**options).label, MIMOFormerConfig(**options).capacity) == (label, capacity)


def test_the_grid_of_a_pass():
    network = small()
    assert network.capacity == 6
    assert [network.config.grid(n) for n in (None, 1, 2, (1, 3), (2, 1))] == [(2, 3), (1, 1), (2, 2), (1, 3), (2, 1)]
    assert replace(network.config, m=4, n=4).grid() == (4, 4)


def test_the_cost_of_a_vocabulary_grows_with_its_size():
    """Each word is compared with few others, so that a vocabulary of 50,000 words takes no minute."""

    class Word(str):
        compared = 0

        def __eq__(self, other):
            Word.compared += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    config(tokenizer="words", words=tuple(Word(number) for number in range(500)), vocab_size=501)
    assert Word.compared < 5000
