"""predict and count_macs."""

import pytest
import torch
from frozen_graphs import frozen_graphs
from test_model import every_head, small
from torch.testing import assert_close

from mimoformer import count_macs, create_model, inference, predict
from vsa_core import graphs


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3)])
@every_head
@pytest.mark.parametrize("masked", [False, True])
def test_predict_gives_every_sequence_its_row(m, n, head, masked):
    """For any count, also over several parts; the last group repeats sequences, whose answers are dropped."""
    model, two_passes = small(head=head), 2 * m * n * 5 * (2 if head == "pair" else 1)
    for count in (*range(1, 2 * m * n + 2), 5 * m * n + 1):
        tokens = torch.randint(11, (count, 2, 5) if head == "pair" else (count, 5))
        mask = torch.rand(tokens.shape) < 0.8 if masked else None
        out = predict(model, tokens, (m, n), mask, tokens_at_once=two_passes)
        groups = -(-count // (m * n))
        order = torch.arange(groups * m * n) % count
        expected = model(
            tokens[order].unflatten(0, (groups, m, n)), None if mask is None else mask[order].unflatten(0, (groups, m, n))
        ).flatten(0, 2)[:count]
        assert len(out) == count
        assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_predict_of_nothing():
    assert predict(small(), torch.zeros(0, 5).long(), 2).shape == (0, 5)
    assert predict(small(head="tokens"), torch.zeros(0, 5).long(), 2).shape == (0, 5, 11)


def test_predict_needs_no_gradient_and_leaves_modes_alone():
    model = small().train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    out = predict(model, torch.randint(11, (5, 7)), 2)
    assert not out.requires_grad
    assert torch.equal(out, predict(model, torch.randint(11, (5, 7)), 2)) is False
    assert [module.training for module in model.modules()] == modes
    tokens = torch.randint(11, (5, 7))
    assert torch.equal(predict(model, tokens, 2), predict(model, tokens, 2))  # no dropout


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((torch.zeros(5, 7).long(), 3), ValueError, "n is 3, a grid of 3 x 3; this network takes 1 x 1 to 2 x 3"),
        ((torch.zeros(5, 7).long(), (1, 4)), ValueError, r"n is \(1, 4\), a grid of 1 x 4; this network takes 1 x 1 to 2 x 3"),
        ((torch.zeros(5, 7).long(), True), TypeError, "n is True; expected a whole number k, a grid"),
        ((torch.zeros(5, 7).long(), 2.0), TypeError, r"n is 2\.0; expected a whole number k"),
        ((torch.zeros(5, 7).long(), [2, 2]), TypeError, r"n is \[2, 2\]; expected a whole number k"),
        ((torch.zeros(5, 7).long(), (1, 2, 3)), ValueError, r"n is \(1, 2, 3\); expected a whole number k, a grid \(m, n\)"),
        ((torch.zeros(5, 7).long(), (0, 1)), ValueError, r"n is \(0, 1\), a grid of 0 x 1"),
        ((torch.zeros(5, 7).long(), (1, 1.0)), TypeError, r"n is \(1, 1\.0\); expected"),
        ((torch.zeros(5, 7), 1), TypeError, "tokens are torch.float32"),
        (
            (torch.zeros(5, 2, 7).long(), 1),
            ValueError,
            r"tokens have shape \(5, 2, 7\); the head classes needs \(count, l\)",
        ),
        (([[1, 2]], 1), TypeError, "tokens are list"),
        ((torch.zeros(5, 7).long() + 99, 1), ValueError, "token ids run from 99 to 99"),
        ((torch.zeros(5, 7).long(), 2, torch.ones(4, 7).bool()), ValueError, r"mask has shape \(4, 7\); expected \(5, 7\)"),
        ((torch.zeros(5, 7).long(), 2, torch.ones(5, 7)), TypeError, "mask is torch.float32"),
    ],
)
def test_what_predict_refuses(arguments, error, named):
    with pytest.raises(error, match=named):
        predict(small(), *arguments)


PUBLISHED = {
    "listops": (3670, 11534, 1.08, 1.16, 1.65, 1.42, 1.12, 1.26, 2.43, 1.80),
    "text": (3670, 11534, 1.08, 1.16, 1.65, 1.42, 1.12, 1.26, 2.43, 1.80),
    "retrieval": (328, 918, 1.25, 1.40, 1.74, 1.65, 1.43, 1.75, 2.76, 2.43),
    "image": (344, 999, 1.62, 1.65, 1.75, 1.74, 2.33, 2.44, 2.80, 2.77),
    "pathfinder": (1606, 6324, 1.48, 1.50, 1.61, 1.60, 1.96, 1.99, 2.31, 2.29),
}
"""Thousands of multiply-adds per token and layer of the Performer, deep and wide; then what the grids 2 x 2 and 4 x 4 save, att.
deep and wide, att.+MLP deep and wide: 3 d HD + 4 HD R + HD d + 2 d d_ff with the second term, or all but the first, divided."""


@pytest.mark.parametrize("task", PUBLISHED)
def test_savings_of_the_published_networks(task):
    """Counted within 0.04 of the formula, which leaves out key products and denominators."""
    savings = []
    for n in (2, 4):
        for variant in ("att", "att+mlp"):
            for size in ("deep", "wide"):
                with torch.device("meta"):
                    plain = create_model(f"performer_{task}_{size}")
                    model = create_model(f"mimoformer_{task}_{size}", m=n, n=n, variant=variant)
                savings.append(count_macs(plain) / count_macs(model))
    assert savings == pytest.approx(PUBLISHED[task][2:], abs=0.04)


@pytest.mark.parametrize("task", PUBLISHED)
@pytest.mark.parametrize("size", ["deep", "wide"])
def test_cost_of_the_published_networks(task, size):
    """Within 1.5 % of the formula: the classifier, key products and denominators are small."""
    with torch.device("meta"):
        model = create_model(f"performer_{task}_{size}")
    tokens = model.config.max_length * (2 if task == "retrieval" else 1)
    kilo = count_macs(model) / tokens / model.config.layers / 1000
    assert kilo == pytest.approx(PUBLISHED[task][size == "wide"], rel=0.015)


@pytest.mark.parametrize(("variant", "products"), [("att", 4 * 8), ("att+mlp", 3 * 8 + 2 * 12), ("blurry", 4 * 8)])
def test_key_products_and_denominators_are_counted(variant, products):
    """Every term of one layer's att. and att.+MLP, by hand: d = 12, HD = 8, R = 8, H = 2, d_ff = 10, m n = 6, 5 tokens."""
    model = small(variant=variant, layers=1)
    d, inner, features, heads, hidden, m, n = 12, 8, 8, 2, 10, 2, 3
    maps = inner * features * (1 / m + 1 / n)
    sums = inner * features * (1 / n + 1 / m)
    rest = inner * d + 2 * d * hidden
    denominators = features * heads * (1 + 1 / m)  # of every slot, and of the whole numerator
    if variant == "blurry":  # once for all slots, and one denominator for all without a mask
        maps = sums = 2 * inner * features / (m * n)
        denominators = features * heads / (m * n)
    if variant == "att+mlp":
        rest, denominators = rest / m, 2 * features * heads / m  # one for a bundle
    per_token = 3 * d * inner + maps + sums + rest + denominators + products
    classifier = d * hidden + hidden * 5
    assert count_macs(model, length=5) == pytest.approx(5 * per_token + classifier)


def test_counting_leaves_the_model_alone():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert count_macs(model, (1, 2)) > count_macs(model, (2, 3)) == count_macs(model)
    assert count_macs(model, length=10) < count_macs(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.unchecked  # its type is another
def test_a_compiled_model_is_counted_and_predicts():
    model = small()
    compiled, tokens = torch.compile(model, backend="eager"), torch.randint(11, (5, 7))
    assert count_macs(compiled, (1, 2)) == count_macs(model, (1, 2))
    assert_close(predict(compiled, tokens, 2), predict(model, tokens, 2))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"n": (3, 3)}, ValueError, "a grid of 3 x 3"),
        ({"n": 3}, ValueError, "n is 3, a grid of 3 x 3; this network takes 1 x 1 to 2 x 3"),
        ({"n": 0}, ValueError, "n is 0, a grid of 0 x 0"),
        ({"n": 2.0}, TypeError, r"n is 2\.0"),
        ({"n": (2, True)}, TypeError, r"n is \(2, True\)"),
        ({"length": 99}, ValueError, "a sequence has 99 tokens; this network takes up to 24"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"length": 5.0}, TypeError, r"length must be a whole number, got 5\.0"),
    ],
)
def test_what_cannot_be_counted(options, error, named):
    with pytest.raises(error, match=named):
        count_macs(small(), **options)


def test_predict_hands_over_no_more_tokens_at_once_than_asked_for():
    model, passes = small(), []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    predict(model, torch.zeros(30, 5).long(), tokens_at_once=2 * 6 * 5 + 1)
    assert passes == [2, 2, 1]


@pytest.mark.parametrize("masked", [False, True])
def test_predict_replays_batches_of_few_tokens(masked, monkeypatch):
    """From the second time on; not where Python has to see whether sequences longer than max_length hold only padding there."""
    monkeypatch.setattr(inference, "REPLAYED_TOKENS", 100)
    model = small().eval()
    longest = model.config.max_length
    with frozen_graphs() as made:
        for count, length in ((8, 7), (20, 7), (4, longest + 1)):
            tokens = torch.randint(11, (count, length))
            mask = torch.arange(length).expand(count, -1) < min(5, length) if masked or length > longest else None
            expected = [predict(model, tokens, 2, mask) for _ in range(4)]
            with graphs.disabled():
                assert_close(expected, [predict(model, tokens, 2, mask)] * 4)
        predict(model.train(), torch.randint(11, (20, 7)), 2, tokens_at_once=28)  # a copy answers
    assert [graph.shape for graph in made] == [(2, 2, 2, 7)]
