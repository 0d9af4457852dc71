"""MIMOFormer's blocks against plain definitions; masks, grids, heads, steps."""

import itertools

import loops
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mimoformer import MIMOFormer, MIMOFormerConfig
from mimoformer.blocks import AttentionBlock, AttentionMLPBlock, TransformerBlock

SMALL = {
    "m": 2,
    "n": 3,
    "vocab_size": 11,
    "max_length": 24,
    "layers": 2,
    "embed_dim": 12,
    "heads": 2,
    "head_dim": 4,
    "mlp_dim": 10,
    "features": 8,
    "num_classes": 5,
}
VARIANTS, HEADS, ATTENTIONS = ("att", "att+mlp", "blurry"), ("classes", "pair", "tokens", "last"), ("relu", "positive", "dpfp")
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_head = pytest.mark.parametrize("head", HEADS)
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def small(**options) -> MIMOFormer:
    """A network in float64 and eval mode, with weights large enough that a mistake shows."""
    model = MIMOFormer(MIMOFormerConfig(**{**SMALL, **options})).double().eval()
    nn.init.normal_(model.embedding.weight)
    if model.positions is not None:
        nn.init.normal_(model.positions)
    return model


def some_tokens(model, b=3, length=7, m=None, n=None):
    """Tokens, and a mask with sequences of all lengths, one without any token."""
    config = model.config
    pair = (2,) if config.head == "pair" else ()
    tokens = torch.randint(config.vocab_size, (b, m or config.m, n or config.n, *pair, length))
    mask = torch.arange(length) < torch.randint(1, length + 1, tokens.shape[:-1])[..., None]
    mask[0, 0, 0] = False
    return tokens, mask


def layer_norm(norm, x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (2, 1), (1, 3)])
@pytest.mark.parametrize("masked", [False, True])
@every_variant
@pytest.mark.parametrize("head", ["classes", "tokens"])
def test_a_block_is_its_definition(m, n, masked, variant, head):
    """On any grid up to that of the keys: the first m x n of them, and q and k divided by sqrt(sqrt(d) m n), as published."""
    model = small(variant=variant, head=head)
    layer = model.blocks[0]
    assert type(layer) is (AttentionMLPBlock if variant == "att+mlp" else AttentionBlock)
    attention = layer.attention
    nn.init.normal_(layer.norm1.weight)
    nn.init.normal_(layer.norm2.bias)
    x = torch.randn(2, m, n, 5, 12, dtype=torch.float64)
    mask = torch.rand(2, m, n, 5) < 0.7 if masked else None
    real = torch.ones(2, m, n, 5, dtype=torch.bool) if mask is None else mask

    def mlp(x):
        return F.relu(x @ layer.mlp[0].weight.mT + layer.mlp[0].bias) @ layer.mlp[3].weight.mT + layer.mlp[3].bias

    qkv = layer_norm(layer.norm1, x) @ attention.qkv.weight.mT + attention.qkv.bias
    q, k, v = (part.unflatten(-1, (2, 4)).movedim(-2, 3) for part in qkv.split(8, -1))
    q, k, keys = q / (2 * m * n) ** 0.5, k / (2 * m * n) ** 0.5, attention.keys[:m, :n]
    shared, phi = variant == "att+mlp", attention.feature_map
    if variant == "blurry":
        attended = loops.blurry(q, k, v, keys, lambda query, key: phi(key) @ phi(query), real, causal=head == "tokens")
    else:
        attended = loops.favor_s(q, k, v, keys, phi, real, causal=head == "tokens", shared=shared)
    projected = attended.movedim(-3, -2).flatten(-2) @ attention.out.weight.mT + attention.out.bias
    expected = torch.zeros_like(x)
    if shared:
        for column in range(n):
            bundle = sum(x[:, row, column] * layer.skip_keys[row, column] * real[:, row, column, :, None] for row in range(m))
            bundle = bundle + projected[:, column]
            bundle = bundle + mlp(layer_norm(layer.norm2, bundle))
            for row in range(m):
                expected[:, row, column] = bundle * layer.skip_keys[row, column]
    else:
        expected = x + projected
        expected = expected + mlp(layer_norm(layer.norm2, expected))
    assert_close(layer(x, mask), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_softmax_baseline_is_torchs_own_layer(masked, causal):
    options = {"m": 1, "n": 1, "attention": "softmax", "head": "tokens" if causal else "classes", "heads": 3, "head_dim": None}
    model = small(**options)
    layer = model.blocks[0]
    assert type(layer) is TransformerBlock
    reference = nn.TransformerEncoderLayer(12, 3, 10, 0.1, batch_first=True, norm_first=True).double().eval()
    with torch.no_grad():
        for theirs, ours in [
            (reference.self_attn.in_proj_weight, layer.attention.qkv.weight),
            (reference.self_attn.in_proj_bias, layer.attention.qkv.bias),
            (reference.self_attn.out_proj.weight, layer.attention.out.weight),
            (reference.self_attn.out_proj.bias, layer.attention.out.bias),
            (reference.linear1.weight, layer.mlp[0].weight),
            (reference.linear1.bias, layer.mlp[0].bias),
            (reference.linear2.weight, layer.mlp[3].weight),
            (reference.linear2.bias, layer.mlp[3].bias),
        ]:
            theirs.copy_(ours)
    x = torch.randn(4, 6, 12, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None] if masked else None
    out = layer(x[:, None, None], None if mask is None else mask[:, None, None])[:, 0, 0]
    padding = None if mask is None else ~mask
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    expected = reference(x, src_mask=hidden, src_key_padding_mask=padding)
    keep = slice(None) if mask is None else mask
    assert_close(out[keep], expected[keep], rtol=1e-9, atol=1e-9)


def test_the_performer_is_favor_without_keys():
    """On a grid of 1 x 1 the keys are ones, so the block is LayerNorm, linear attention, MLP and nothing else."""
    model = small(m=1, n=1)
    layer, x = model.blocks[0], torch.randn(4, 1, 1, 6, 12, dtype=torch.float64)
    attention = layer.attention
    assert torch.equal(attention.keys, torch.ones(1, 1, 4, dtype=torch.float64))
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(-2, -3) for part in attention.qkv(layer.norm1(x)).split(8, -1))
    phi = attention.feature_map
    weights = phi(q / 4**0.25) @ phi(k / 4**0.25).mT  # the second d^(1/4) of the published code
    attended = weights @ v / weights.sum(-1, keepdim=True)
    y = x + attention.out(attended.transpose(-2, -3).flatten(-2))
    assert_close(layer(x), y + layer.mlp(layer.norm2(y)), rtol=1e-9, atol=1e-9)


def test_keys_are_bipolar_fixed_and_different_for_every_layer_and_slot():
    model = small(variant="att+mlp", head_dim=64, embed_dim=64)
    keys = [layer.attention.keys for layer in model.blocks] + [layer.skip_keys for layer in model.blocks]
    assert all(torch.equal(key.abs(), torch.ones_like(key)) for key in keys)
    assert not any(key.requires_grad for key in keys)
    vectors = torch.cat([key.flatten(0, 1) for key in keys])
    assert len(vectors.unique(dim=0)) == 4 * 6
    assert vectors.mean().abs() < 5 / vectors.numel() ** 0.5


@every_variant
def test_trainable_keys(variant):
    model = small(variant=variant, trainable_keys=True).train()
    model(torch.randint(11, (2, 2, 3, 5))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_variant
@every_head
@every_attention
def test_every_parameter_is_used_and_trained(variant, head, attention):
    model = small(variant=variant, head=head, attention=attention).train()
    tokens, mask = some_tokens(model)
    model(tokens, mask).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert name.endswith("keys")


@every_variant
@every_head
@every_attention
def test_sequences_padded_to_twice_their_length_give_the_same(variant, head, attention):
    model = small(variant=variant, head=head, attention=attention)
    tokens, mask = some_tokens(model)
    expected = model(tokens, mask)
    longer = torch.cat([tokens.masked_fill(~mask, -999), torch.full_like(tokens, 10**9)], -1)
    out = model(longer, torch.cat([mask, torch.zeros_like(mask)], -1))
    if head == "tokens":
        assert_close(out[..., :7, :][mask], expected[mask], rtol=1e-10, atol=1e-10)
    else:
        assert_close(out, expected, rtol=1e-10, atol=1e-10)
    tokens = tokens.masked_fill(~mask, 3)
    assert_close(model(tokens, mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", ["classes", "pair", "last", "tokens"])
def test_the_softmax_baseline_ignores_padding_too(head):
    model = small(m=1, n=1, attention="softmax", head=head)
    tokens, mask = some_tokens(model)
    longer = torch.cat([tokens, torch.full_like(tokens, -1)], -1)
    out = model(longer, torch.cat([mask, torch.zeros_like(mask)], -1))
    expected = model(tokens, mask)
    if head == "tokens":
        out, expected = out[..., :7, :][mask], expected[mask]
    assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_the_published_mean_is_over_all_positions():
    model = small(pool="all")
    tokens, mask = some_tokens(model)
    hidden = model.encode(tokens.masked_fill(~mask, 0), mask).masked_fill(~mask[..., None], 0)
    assert_close(model(tokens, mask), model.head(hidden.sum(-2) / 7))
    model = small()
    hidden = model.encode(tokens.masked_fill(~mask, 0), mask).masked_fill(~mask[..., None], 0)
    assert_close(model(tokens, mask), model.head(hidden.sum(-2) / mask.sum(-1, keepdim=True).clamp_min(1)))
    assert_close(model(tokens), model.head(model.encode(tokens, None).mean(-2)))


def test_the_head_of_pairs_is_the_four_way_concatenation():
    model = small(head="pair")
    tokens, mask = some_tokens(model)
    parts = [(tokens[..., i, :], mask[..., i, :]) for i in (0, 1)]
    hidden = [model.encode(t.masked_fill(~k, 0), k).masked_fill(~k[..., None], 0).sum(-2) for t, k in parts]
    one, two = (h / k.sum(-1, keepdim=True).clamp_min(1) for h, (_, k) in zip(hidden, parts, strict=True))
    features = torch.cat([one, two, one * two, one - two], -1)
    expected = F.relu(features @ model.head[0].weight.mT + model.head[0].bias) @ model.head[2].weight.mT + model.head[2].bias
    assert_close(model(tokens, mask), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_last_reads_the_last_real_token(tied):
    model = small(head="last", tied=tied)
    tokens, mask = some_tokens(model)
    hidden = model.encode(tokens.masked_fill(~mask, 0), mask)
    out = model(tokens, mask)
    weight = model.embedding.weight if tied else model.head.weight
    for b, m, n in itertools.product(range(3), range(2), range(3)):
        real = mask[b, m, n].nonzero()
        expected = hidden[b, m, n, int(real[-1])] if len(real) else torch.zeros(12, dtype=torch.float64)
        assert_close(out[b, m, n], expected @ weight.mT)
    assert_close(model(tokens), model.encode(tokens, None)[..., -1, :] @ weight.mT)


def spread(tokens, mask, length, where):
    """The same sequences among garbage, with places of real tokens in order: at the start, the end, or anywhere."""
    out, real = torch.full((*tokens.shape[:-1], length), 10**9), torch.zeros(*tokens.shape[:-1], length, dtype=torch.bool)
    for index in itertools.product(*map(range, tokens.shape[:-1])):
        count = int(mask[index].sum())
        drawn = {"right": torch.arange(count), "left": torch.arange(length - count, length), "holes": torch.randperm(length)}
        places = drawn[where][:count].sort().values
        out[index][places], real[index][places] = tokens[index][mask[index]], True
    return out, real


every_padding = pytest.mark.parametrize("where", ["right", "left", "holes"])


LINEAR = [(*kind, variant) for kind in [(2, 3, "relu"), (1, 1, "positive"), (2, 2, "dpfp")] for variant in VARIANTS]


@every_padding
@every_head
@pytest.mark.parametrize(("m", "n", "attention", "variant"), [*LINEAR, (1, 1, "softmax", "att")])
def test_it_does_not_matter_where_padding_stands(where, variant, head, m, n, attention):
    """Of unequal sequences in any grid, each padded in its own way, beyond max_length too."""
    model = small(variant=variant, head=head, m=m, n=n, attention=attention)
    tokens, mask = some_tokens(model)
    expected = model(tokens, mask)
    padded, real = spread(tokens, mask, 30, where)
    out = model(padded, real)
    assert_close(*((out[real], expected[mask]) if head == "tokens" else (out, expected)), rtol=1e-9, atol=1e-9)


@every_padding
@every_variant
@every_head
def test_padded_sequences_get_the_answers_of_unpadded_ones(where, variant, head):
    """Sequences of one length, so that they can do without padding and without a mask."""
    model = small(variant=variant, head=head)
    tokens, mask = some_tokens(model)
    expected = model(tokens)
    padded, real = spread(tokens, torch.ones_like(mask), 12, where)
    out = model(padded, real)
    if head == "tokens":
        out = out[real].unflatten(0, tokens.shape)
    assert_close(out, expected, rtol=1e-9, atol=1e-9)


@every_padding
@every_variant
def test_padded_steps_give_the_answers_of_unpadded_ones(where, variant):
    """One sequence alone, and a grid whose sequences pause together; the last step of a state has the last position."""
    for m, n in [(1, 1), (2, 3)]:
        model = small(variant=variant, head="tokens", m=m, n=n, max_length=7)
        tokens, mask = some_tokens(model, b=1)
        expected = model(tokens)
        padded, real = spread(tokens[:, :1, :1], torch.ones_like(mask[:, :1, :1]), 12, where)
        places = real[0, 0, 0].nonzero().flatten().tolist()
        padded = padded.repeat(1, m, n, 1)
        padded[..., places] = tokens
        state = None
        for step in range(12):
            present = torch.full((1, m, n), step in places)
            logits, state = model.step(padded[..., step], state, present)
            if step in places:
                assert_close(logits, expected[..., places.index(step), :], rtol=1e-9, atol=1e-9)
        assert (state.length, state.real.unique().tolist()) == (12, [7])
        with pytest.raises(ValueError, match="a sequence has 8 tokens; this network takes up to 7"):
            model.step(tokens[..., 0], state)


def test_steps_with_and_without_a_mask_mix():
    """Positions go on from the number of real tokens of each sequence."""
    model = small(head="tokens", m=1, n=1)
    tokens = torch.randint(11, (2, 1, 1, 4))
    expected, state, taken = model(tokens), None, [0, 0]
    for present in [None, None, [True, False], [False, True], None]:
        now = torch.stack([tokens[b, ..., taken[b]] for b in range(2)])
        logits, state = model.step(now, state, None if present is None else torch.tensor(present)[:, None, None])
        for b in range(2):
            if present is None or present[b]:
                assert_close(logits[b], expected[b, ..., taken[b], :], rtol=1e-10, atol=1e-10)
                taken[b] += 1


def test_padding_keeps_its_place_as_published():
    """With pool all, positions are those of places: holes are like black pixels."""
    model = small(pool="all", m=1, n=1)
    tokens = torch.randint(11, (2, 1, 1, 6))
    mask = torch.tensor([True, False, True, True, False, False]).expand(2, 1, 1, 6)
    x = model.embedding(tokens) + model.positions[:6]
    for layer in model.blocks:
        x = layer(x, mask)
    assert_close(model(tokens, mask), model.head((model.norm(x) * mask[..., None]).sum(-2) / 6))
    longer = F.pad(tokens, (0, 30), value=10**9), F.pad(mask, (0, 30))
    assert_close(model(*longer), model.head((model.norm(x) * mask[..., None]).sum(-2) / 36))


def test_max_length_counts_real_tokens():
    model = small()
    tokens, mask = torch.randint(11, (1, 2, 3, 40)), torch.rand(1, 2, 3, 40).argsort(-1) < 24
    assert model(tokens, mask).isfinite().all()
    mask[0, 1, 1] = torch.arange(40) < 25
    with pytest.raises(ValueError, match="a sequence has 25 tokens; this network takes up to 24, its max_length"):
        model(tokens, mask)
    with pytest.raises(ValueError, match="a sequence has 40 tokens; this network takes up to 24"):
        model(tokens)
    assert model(tokens[:0], mask[:0]).shape == (0, 2, 3, 5)


@every_variant
@every_attention
@pytest.mark.parametrize("masked", [False, True])
def test_step_by_step_gives_the_whole(variant, attention, masked):
    model = small(variant=variant, head="tokens", attention=attention, tied=masked)
    tokens, mask = some_tokens(model, length=9)
    whole = model(tokens, mask if masked else None)
    state, sizes = None, []
    for place in range(9):
        logits, state = model.step(tokens[..., place], state, mask[..., place] if masked else None)
        keep = mask[..., place] if masked else slice(None)
        assert_close(logits[keep], whole[..., place, :][keep], rtol=1e-10, atol=1e-10)
        sizes.append(sum(part.numel() for block in state.blocks for part in (*block.sums, block.log_scale)))
    assert state.length == 9
    assert len(set(sizes)) == 1


@every_head
@every_variant
def test_a_causal_model_does_not_see_the_future(head, variant):
    model = small(head=head, variant=variant)
    tokens, _ = some_tokens(model)
    changed = tokens.clone()
    changed[..., 4:] = (changed[..., 4:] + 1) % 11
    states = [model.encode(x[..., 0, :] if head == "pair" else x, None)[..., :4, :] for x in (tokens, changed)]
    assert torch.equal(*states) is (head == "tokens")


@every_variant
@every_head
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_a_smaller_grid_runs_as_itself_with_the_first_keys(variant, head, m, n):
    """As a network that was made for it and got these keys; nothing of the larger one is left in it."""
    model, other = small(variant=variant, head=head), small(variant=variant, head=head, m=m, n=n)
    state = {name: value[:m, :n] if name.endswith("keys") else value for name, value in model.state_dict().items()}
    other.load_state_dict(state)
    tokens, mask = some_tokens(model, m=m, n=n)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(tokens, mask), other(tokens, mask))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every_variant
@pytest.mark.parametrize("axis", [1, 2])
def test_permuting_rows_or_columns_with_their_keys_permutes_outputs(variant, axis):
    model = small(variant=variant, m=3, n=3)
    tokens, mask = some_tokens(model)
    order = torch.tensor([2, 0, 1])
    expected = model(tokens, mask).index_select(axis, order)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("keys"):
                parameter.copy_(parameter.index_select(axis - 1, order))
    assert_close(model(tokens.index_select(axis, order), mask.index_select(axis, order)), expected, rtol=1e-9, atol=1e-9)


def test_groups_do_not_see_each_other():
    model = small(attention="positive")
    tokens, mask = some_tokens(model)
    assert_close(model(tokens, mask)[1:2], model(tokens[1:2], mask[1:2]), rtol=1e-12, atol=1e-12)


def test_dropout_is_off_in_eval_mode_and_on_in_training():
    model = small()
    tokens, _ = some_tokens(model)
    assert torch.equal(model(tokens), model(tokens))
    assert not torch.equal(model.train()(tokens), model(tokens))
    still = small(dropout=0.0).train()
    assert torch.equal(still(tokens), still(tokens))


def test_starts_as_published():
    """Embeddings and positions N(0, 0.02), within 5 %."""
    model = MIMOFormer(MIMOFormerConfig(vocab_size=512, max_length=1024, layers=1, embed_dim=64, mlp_dim=64))
    for table in (model.embedding.weight, model.positions):
        assert table.std().item() == pytest.approx(0.02, rel=0.05)
        assert table.mean().abs() < 1e-3


def test_starts_as_gpt2_does():
    """Linear weights N(0, 0.02), of the layers that add to the residual stream N(0, 0.02 / sqrt(2 layers)), within 5 %."""
    torch.manual_seed(0)
    sizes = {"layers": 3, "embed_dim": 64, "heads": 4, "mlp_dim": 128, "vocab_size": 256, "max_length": 128}
    model = MIMOFormer(MIMOFormerConfig(init="gpt2", head="tokens", variant="att+mlp", **sizes))
    ends = [f"blocks.{block}.{layer}.weight" for block in range(3) for layer in ("attention.out", "mlp.3")]
    linear = {name for name, value in model.named_parameters() if value.dim() == 2}
    assert linear > set(ends)
    for name, value in model.named_parameters():
        if name in linear:
            assert value.std().item() == pytest.approx(0.02 / 6**0.5 if name in ends else 0.02, rel=0.05), name
        elif name.endswith("bias"):
            assert not value.any(), name


@pytest.mark.parametrize("attention", ["relu", "softmax"])
def test_where_dropout_is(attention):
    """`dropout` acts on embeddings, `residual_dropout` within blocks; they are equal by default."""
    for dropout, residual, expected in [(0.1, None, 0.1), (0.1, 0.0, 0.0), (0.0, 0.3, 0.3)]:
        model = small(m=1, n=1, attention=attention, dropout=dropout, residual_dropout=residual)
        found = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, nn.Dropout)}
        blocks = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("dropout", "mlp.2", "mlp.4")]
        assert found == {"dropout": dropout, **dict.fromkeys(blocks, expected)}


@pytest.mark.parametrize("masked", [False, True])
def test_dropout_of_attention_weights(masked):
    """With equal weights of 1/4 and distinct values: each is dropped or doubled at a rate of a half, in training alone."""
    model = small(m=1, n=1, attention="softmax", dropout=0.0, attention_dropout=0.5, layers=1, heads=1, head_dim=4, embed_dim=4)
    layer, x = model.blocks[0].attention, torch.eye(4, dtype=torch.float64).expand(500, 1, 1, 4, 4)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
        layer.out.weight.copy_(torch.eye(4))
        layer.qkv.bias.zero_()
        layer.out.bias.zero_()
    mask = torch.ones(500, 1, 1, 4, dtype=torch.bool) if masked else None
    assert_close(layer(x, mask), torch.full_like(x, 0.25))
    torch.manual_seed(0)
    weights = layer.train()(x, mask)
    assert set(weights.unique().tolist()) == {0.0, 0.5}
    assert abs((weights == 0).double().mean() - 0.5) < 5 * 0.5 / weights.numel() ** 0.5
    assert_close(layer.eval()(x, mask), torch.full_like(x, 0.25))


def test_a_network_without_positions_adds_none():
    model = small(positions=False)
    assert "positions" not in model.state_dict()
    tokens, mask = some_tokens(model)
    assert model.first_positions(7, mask) is None
    order = torch.randperm(7)
    assert_close(model(tokens[..., order]), model(tokens), rtol=1e-9, atol=1e-9)


def test_an_empty_batch():
    for head in HEADS:
        model = small(head=head)
        tokens, mask = some_tokens(model)
        assert model(tokens[:0], mask[:0]).shape == (0, *model(tokens, mask).shape[1:])


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16, torch.uint16])
def test_any_integers(dtype):
    model = small()
    tokens, mask = some_tokens(model)
    assert torch.equal(model(tokens.to(dtype), mask), model(tokens, mask))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"m": 0}, ValueError, "m must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, r"n must be a whole number, got 2\.0"),
        ({"vocab_size": True}, TypeError, "vocab_size must be a whole number, got True"),
        ({"embed_dim": 10, "heads": 4, "head_dim": None}, ValueError, "embed_dim 10 is not divisible by heads 4"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, got 0"),
        ({"variant": "mlp"}, ValueError, r"variant is 'mlp'; expected one of att, att\+mlp, blurry"),
        ({"attention": "linear"}, ValueError, "attention is 'linear'; expected one of relu, positive, dpfp, softmax"),
        ({"head": "token"}, ValueError, "head is 'token'; expected one of classes, pair, tokens, last"),
        ({"pool": "max"}, ValueError, "pool is 'max'; expected one of real, all"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'; expected one of relu, gelu"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1\.0; expected a number from 0 to below 1"),
        ({"dropout": "0.1"}, TypeError, "dropout is '0.1'; expected"),
        ({"dropout": float("nan")}, ValueError, "dropout is nan; expected"),
        ({"residual_dropout": 1.5}, ValueError, r"residual_dropout is 1\.5; expected a number from 0 to below 1"),
        ({"attention_dropout": -0.1}, ValueError, r"attention_dropout is -0\.1; expected a number from 0 to below 1"),
        (
            {"attention_dropout": 0.1},
            ValueError,
            r"attention_dropout is 0\.1 with relu attention, which has no matrix of weights",
        ),
        ({"positions": 1}, TypeError, "positions is 1; expected True or False"),
        ({"init": "bert"}, ValueError, "init is 'bert'; expected one of torch, gpt2"),
        (
            {"attention": "softmax"},
            ValueError,
            "softmax attention cannot be shared by a grid of 2 x 3 in variant att; it needs m = n = 1",
        ),
        ({"attention": "softmax", "m": 1, "n": 1, "variant": "att+mlp"}, ValueError, r"a grid of 1 x 1 in variant att\+mlp"),
        ({"tied": "no"}, TypeError, "tied is 'no'; expected True or False"),
        ({"trainable_keys": 1}, TypeError, "trainable_keys is 1; expected True or False"),
        ({"tied": True}, ValueError, "tied embeddings cannot serve head 'classes'; expected head tokens or last"),
    ],
)
def test_what_cannot_be_configured(options, error, named):
    with pytest.raises(error, match=named):
        MIMOFormerConfig(**{**SMALL, **options})


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("head", "tokens", "mask", "error", "named"),
    [
        (
            "classes",
            torch.zeros(1, 3, 3, 5).long(),
            None,
            ValueError,
            "a grid of 3 x 3 sequences is too large; this network takes 2 x 3",
        ),
        (
            "classes",
            torch.zeros(1, 2, 4, 5).long(),
            None,
            ValueError,
            "a grid of 2 x 4 sequences is too large; this network takes 2 x 3",
        ),
        (
            "classes",
            torch.zeros(1, 2, 3, 25).long(),
            None,
            ValueError,
            "a sequence has 25 tokens; this network takes up to 24, its max_length",
        ),
        ("classes", torch.zeros(1, 2, 3, 0).long(), None, ValueError, r"tokens have shape \(1, 2, 3, 0\)"),
        ("classes", torch.zeros(2, 3, 5).long(), None, ValueError, r"the head classes needs \(b, m, n, l\)"),
        ("pair", torch.zeros(1, 2, 3, 5).long(), None, ValueError, r"the head pair needs \(b, m, n, 2, l\)"),
        ("pair", torch.zeros(1, 2, 3, 3, 5).long(), None, ValueError, r"the head pair needs \(b, m, n, 2, l\)"),
        ("classes", torch.zeros(1, 2, 3, 5), None, TypeError, "tokens are torch.float32; .* ids from 0 to 10"),
        ("classes", torch.zeros(1, 2, 3, 5).bool(), None, TypeError, "tokens are torch.bool"),
        ("classes", [[1, 2]], None, TypeError, "tokens are list"),
        ("classes", torch.full((1, 2, 3, 5), 11), None, ValueError, "token ids run from 11 to 11; this network knows 0 to 10"),
        ("classes", torch.full((1, 2, 3, 5), -1), None, ValueError, "token ids run from -1 to -1"),
        ("classes", torch.zeros(1, 2, 3, 5).long(), torch.ones(1, 2, 3, 5), TypeError, "mask is torch.float32"),
        ("classes", torch.zeros(1, 2, 3, 5).long(), torch.ones(1, 2, 3, 4).bool(), ValueError, r"mask has shape \(1, 2, 3, 4\)"),
        ("pair", torch.zeros(1, 2, 3, 2, 5).long(), torch.ones(1, 2, 3, 5).bool(), ValueError, r"expected \(1, 2, 3, 2, 5\)"),
    ],
)
def test_what_does_not_fit(head, tokens, mask, error, named):
    with pytest.raises(error, match=named):
        small(head=head)(tokens, mask)


@pytest.mark.unchecked
def test_steps_that_cannot_be():
    tokens = torch.zeros(1, 2, 3).long()
    with pytest.raises(ValueError, match="steps are not possible with head classes and relu attention; they need head tokens"):
        small().step(tokens)
    with pytest.raises(ValueError, match="with head tokens and softmax attention"):
        small(m=1, n=1, head="tokens", attention="softmax").step(tokens[:, :1, :1])
    model = small(head="tokens", max_length=1)
    _, state = model.step(tokens)
    with pytest.raises(ValueError, match="a sequence has 2 tokens; this network takes up to 1, its max_length"):
        model.step(tokens, state)
    with pytest.raises(ValueError, match="token ids run from 11 to 11"):
        model.step(tokens + 11)
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 2, 3, 1\); a step takes one token per sequence, \(b, m, n\)"):
        model.step(tokens[..., None])
    with pytest.raises(TypeError, match="state is a tuple; expected the ModelState that the previous step"):
        model.step(tokens, tuple(state))
    with pytest.raises(TypeError, match="expected the ModelState that the previous step"):
        small(head="tokens", layers=1).step(tokens, state)
    with pytest.raises(ValueError, match="the state's sums have shapes"):
        small(head="tokens").step(tokens[:, :1], state)
    _, state = small(head="tokens").step(tokens, mask=tokens == 0)
    with pytest.raises(ValueError, match=r"the state has \(b, m, n\) = \(1, 2, 3\); these tokens have \(1, 1, 3\)"):
        small(head="tokens").step(tokens[:, :1], state)


@pytest.mark.unchecked
def test_gradients_of_every_sequence_apart():
    """torch.func's vmap over a batch: nothing in the way asks for a value."""
    model = small(dropout=0.0)
    tokens, mask = some_tokens(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, tokens, mask):
        return torch.func.functional_call(model, parameters, (tokens[None], mask[None])).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, tokens, mask)
    one = torch.func.grad(loss)(parameters, tokens[1], mask[1])
    for name, grad in grads.items():
        assert_close(grad[1], one[name])
