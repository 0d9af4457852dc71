import inspect
import json
import re
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.datamux_conv import DataMUXConv, DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUX, DataMUXConfig
from mimo_benchmarks.networks.registry import describe, load_finished
from vsa_core.hub.library import digest

SMALL = DataMUXConfig(
    capacity=3, vocab_size=7, max_length=9, layers=2, embed_dim=8, heads=2, mlp_dim=12, activation="gelu", num_classes=4
)
MASK = torch.arange(6) < torch.tensor([[6, 4, 2], [3, 5, 5]])[..., None]  # nothing is real at the end of the second pass


def transformer(head="classes", capacity=3):
    network = with_biases(DataMUX(replace(SMALL, head=head, capacity=capacity))).eval()
    with torch.no_grad():  # embeddings as large as everything else, so that nothing hides behind biases
        for table in (network.embedding.weight, network.markers.weight, network.positions):
            table.mul_(50)
    return network


def plain_cnn(network, images):
    first, _, second, _ = network.mux
    c1, _, _, c3, _, _, c5, _, _, f6, _ = network.lenet
    n, total = len(images), 0
    for i, image in enumerate(images):
        x = F.conv2d(image, first.weight.chunk(n)[i], first.bias.chunk(n)[i], padding=1).tanh()
        total = total + F.conv2d(x, second.weight.chunk(n)[i], second.bias.chunk(n)[i], padding=1).tanh()
    x = F.avg_pool2d(F.conv2d(total, c1.weight, c1.bias).tanh(), 2)
    x = F.avg_pool2d(F.conv2d(x, c3.weight, c3.bias).tanh(), 2)
    x = f6(F.conv2d(x, c5.weight, c5.bias).tanh().flatten()).tanh()
    demux = network.demux[0]
    own = [(demux.weight.chunk(n)[i] @ x + demux.bias.chunk(n)[i]).tanh() for i in range(n)]
    return torch.stack([network.head[0](x).tanh() for x in own])


def plain_block(block, x, seen, causal):
    """x (l e), row by row: softmax over the tokens that are seen."""
    q, k, v = block.attention.qkv(block.norm1(x)).chunk(3, -1)
    rows = []
    for i in range(len(x)):
        visible = [j for j in range(len(x)) if seen[j] and (j <= i or not causal)]
        heads = []
        for query, key, value in zip(
            q.chunk(block.attention.heads, -1),
            k.chunk(block.attention.heads, -1),
            v.chunk(block.attention.heads, -1),
            strict=True,
        ):
            weights = (key[visible] @ query[i] / query.shape[-1] ** 0.5).softmax(0)
            heads.append(weights @ value[visible])
        rows.append(torch.cat(heads))
    x = x + block.attention.out(torch.stack(rows))
    return x + block.mlp(block.norm2(x))


def plain_transformer(network, tokens, mask):
    """One pass: tokens and mask (n l)."""
    n, length = tokens.shape
    rows = []
    for place in range(n):
        rows.append(sum(network.markers.weight[i if i == place else n] * network.keys[i] for i in range(n)) / n)
        rows[-1] = rows[-1] + network.positions[place] * network.keys.mean(0)
    for j in range(length):
        embedded = [network.embedding.weight[tokens[i, j]] + network.positions[n + j] for i in range(n)]
        rows.append(sum(embedded[i] * network.keys[i] * mask[i, j] for i in range(n)) / n)
    x, seen = torch.stack(rows), [True] * n + mask.any(0).tolist()
    for block in network.blocks:
        x = plain_block(block, x, seen, causal=network.config.head == "tokens")
    x = network.norm(x)
    weight = torch.cat([network.of_index.weight, network.of_token.weight], 1)
    answers = []
    for i in range(n):
        own = [network.demux(weight @ torch.cat([x[i], x[n + j]]) + network.of_token.bias) for j in range(length)]
        if network.config.head == "classes":
            own = sum(h for h, real in zip(own, mask[i], strict=True) if real) / mask[i].sum()
        answers.append(network.head(own if network.config.head == "classes" else torch.stack(own)))
    return torch.stack(answers)


def with_biases(network):
    """Biases that are not 0, as after training."""
    for name, p in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    return network.double()


@pytest.mark.parametrize(("n", "channels", "size"), [(1, 1, 20), (3, 2, 21), (2, 1, 28)])
def test_the_cnn_is_as_defined(n, channels, size):
    network = with_biases(DataMUXConv(DataMUXConvConfig(capacity=n, in_channels=channels, image_size=size)))
    images = torch.randn(2, n, channels, size, size, dtype=torch.float64)
    assert_close(network(images), torch.stack([plain_cnn(network, group) for group in images]))


@pytest.mark.parametrize("head", ["classes", "tokens"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_transformer_is_as_defined(head, n, masked):
    network, tokens = transformer(head, n), torch.randint(7, (2, n, 6))
    mask = MASK[:, :n] if masked else torch.ones_like(tokens, dtype=torch.bool)
    expected = torch.stack([plain_transformer(network, *group) for group in zip(tokens, mask, strict=True)])
    found = network(tokens, mask if masked else None)
    assert found.shape == ((2, n, 4) if head == "classes" else (2, n, 6, 7))
    real = mask if head == "tokens" else ...
    assert_close(found[real], expected[real])


def test_help_explains_every_field():
    """Under Attributes, which `mimonets --help` reads too, in the order of the fields."""
    _, _, attributes = (inspect.getdoc(DataMUXConfig) or "").partition("Attributes:\n")
    assert re.findall(r"^    (\w+): \w", attributes, re.MULTILINE) == [field.name for field in fields(DataMUXConfig)]


def test_keys_have_the_length_of_gaussian_ones_and_are_not_trained():
    network = DataMUX(replace(SMALL, capacity=2, embed_dim=512))
    assert_close(network.keys.norm(dim=-1), torch.full((2,), 512**0.5))
    assert_close(network.keys.mean(), torch.tensor(0.0), atol=5 * 1024**-0.5, rtol=0)  # five standard deviations
    assert "keys" not in dict(network.named_parameters())
    assert "keys" in network.state_dict()


def test_places_of_a_pass_differ_in_their_keys_and_markers_alone():
    """Sequences in another order get the same answers, in that order, when all that belongs to their places moves along."""
    network, tokens, order = transformer(), torch.randint(7, (2, 3, 6)), torch.tensor([2, 0, 1])
    before = network(tokens, MASK)
    assert (network(tokens[:, order], MASK[:, order]) - before[:, order]).abs().min() > 1e-6
    with torch.no_grad():
        for table in (network.keys, network.markers.weight, network.positions):
            table[:3] = table[order]
    assert_close(network(tokens[:, order], MASK[:, order]), before[:, order])


def test_sequences_of_a_pass_blur_each_other_and_passes_do_not():
    network, tokens = transformer(), torch.randint(7, (2, 3, 6))
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 1) % 7
    change = (network(other) - network(tokens)).abs()
    assert change[0].min() > 1e-6
    assert not change[1].any()


def test_padding_changes_nothing():
    network, tokens = transformer(), torch.randint(7, (2, 3, 6))
    before = network(tokens, MASK)
    assert_close(network(torch.where(MASK, tokens, 6 - tokens), MASK), before)
    assert_close(network(F.pad(tokens, (0, 3)), F.pad(MASK, (0, 3))), before)


@pytest.mark.parametrize("head", ["classes", "tokens"])
@pytest.mark.parametrize("where", ["left", "holes"])
def test_it_does_not_matter_where_padding_stands(head, where):
    """Of unequal sequences, each padded in its own way, beyond max_length too."""
    network, tokens = transformer(head), torch.randint(7, (2, 3, 6))
    padded, real = torch.full((2, 3, 12), 10**9), torch.zeros(2, 3, 12, dtype=torch.bool)
    for b in range(2):
        for i in range(3):
            count = int(MASK[b, i].sum())
            places = torch.arange(12 - count, 12) if where == "left" else torch.randperm(12)[:count].sort().values
            padded[b, i, places], real[b, i, places] = tokens[b, i, :count], True
    found, expected = network(padded, real), network(tokens, MASK)
    assert_close(*((found[real], expected[MASK]) if head == "tokens" else (found, expected)))


def test_no_token_sees_a_later_one():
    network, tokens = transformer("tokens"), torch.randint(7, (2, 3, 6))
    other = torch.where(torch.arange(6) < 4, tokens, (tokens + 1) % 7)
    before, after = network(tokens), network(other)
    assert_close(after[:, :, :4], before[:, :, :4])
    assert (after - before)[:, :, 4:].abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize(("n", "millions"), [(1, 0.879), (2, 0.703), (4, 0.614), (8, 0.570), (16, 0.548)])
def test_the_cnn_costs_what_the_published_one_does(n, millions):
    network = describe(DataMUXConvConfig(capacity=n))
    macs = network.count_macs(network.build(), n)
    assert macs == 518_400 + 352_800 / n + 84 * 84 + 84 * 10
    assert round(macs / 1e6, 3) == pytest.approx(millions)


@pytest.mark.parametrize("head", ["classes", "tokens"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_transformer_costs_what_its_products_do(head, n, d=16, hidden=24, length=50, vocab=11):
    config = DataMUXConfig(
        **{"capacity": n, "vocab_size": vocab, "max_length": length, "layers": 3, "embed_dim": d, "heads": 2, "mlp_dim": hidden},
        head=head,
    )
    seen = n + length
    block = seen * (4 * d * d + 2 * d * hidden) + 2 * seen * seen * d
    answer = n * length * d * vocab if head == "tokens" else n * (d * hidden + hidden * 10)
    mixing, splitting = n * length * d, seen * d * d
    assert describe(config).count_macs(DataMUX(config), n) == (3 * block + mixing + splitting + answer) / n


@pytest.mark.parametrize("head", ["classes", "tokens"])
def test_gradient_reaches_every_parameter(head):
    network = transformer(head)
    network(torch.arange(7).repeat(2, 3, 1)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in network.named_parameters() if name != "positions")
    assert network.positions.grad[: 3 + 7].abs().amax(-1).min() > 0
    cnn = DataMUXConv(DataMUXConvConfig(capacity=2))
    cnn(torch.randn(4, 2, 1, 20, 20)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in cnn.parameters())


def test_dropout_and_initialisation_are_those_of_the_transformer():
    torch.manual_seed(0)
    config = replace(SMALL, embed_dim=64, mlp_dim=64, init="gpt2", dropout=0.1, residual_dropout=0.0, attention_dropout=0.2)
    network = DataMUX(config)
    assert network.dropout.p == 0.1
    for block in network.blocks:
        assert (block.dropout.p, block.attention.dropout) == (0.0, 0.2)
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert network.of_token.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not network.of_token.bias.any()


def test_the_cnn_starts_with_the_spread_that_tanh_wants():
    network = DataMUXConv(DataMUXConvConfig(capacity=16))
    for weight in (network.mux[2].weight, network.demux[0].weight):  # whose fan-in is that of one image
        assert weight.std().item() * weight[0].numel() ** 0.5 == pytest.approx(1, abs=5 / weight.numel() ** 0.5)


@pytest.mark.once
def test_the_cnn_learns_what_it_sees():
    network = DataMUXConv(DataMUXConvConfig(capacity=2))
    labels = torch.randint(10, (32, 2))  # class c is a bright patch at the c-th of ten places
    images = F.one_hot(labels, 10).view(32, 2, 1, 2, 5).float().repeat_interleave(10, -2).repeat_interleave(4, -1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(50):
        loss = F.mse_loss(network(images), 2.0 * F.one_hot(labels, 10) - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(images).argmax(-1) == labels).float().mean() > 0.9


@pytest.mark.once
@pytest.mark.parametrize("head", ["classes", "tokens"])
def test_the_transformer_learns_what_it_sees(head):
    network = DataMUX(replace(SMALL, capacity=2, embed_dim=32, mlp_dim=64, dropout=0.0, head=head))
    tokens = torch.randint(7, (16, 2, 6))
    labels = torch.randint(4, (16, 2)) if head == "classes" else torch.randint(7, (16, 2, 6))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        loss = F.cross_entropy(network(tokens).flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(tokens).argmax(-1) == labels).float().mean() > 0.9


@pytest.mark.unchecked
@pytest.mark.parametrize("shape", [(8, 3, 1, 20, 20), (8, 2, 3, 20, 20), (8, 2, 1, 28, 28), (2, 1, 20, 20)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"{shape}; DataMUX always needs (b, n, c, h, w) with (2, 1, 20, 20) after b")):
        DataMUXConv(DataMUXConvConfig(capacity=2))(torch.zeros(shape))


@pytest.mark.unchecked
@pytest.mark.parametrize("shape", [(8, 2, 5), (8, 4, 5), (8, 3, 10), (8, 3, 0), (3, 5)])
def test_tokens_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="n = 3 sequences per pass and l from 1 to 9"):
        DataMUX(SMALL)(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3, 5\); expected \(2, 3, 6\)"):
        DataMUX(SMALL)(torch.zeros(2, 3, 6, dtype=torch.long), MASK[..., :5])
    with pytest.raises(ValueError, match="l from 1 to 9 real tokens"):
        DataMUX(SMALL)(torch.zeros(2, 3, 12, dtype=torch.long), torch.arange(12).expand(2, 3, 12) < 10)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (SMALL, {"capacity": 0}, "capacity must be at least 1, got 0"),
        (SMALL, {"heads": 3}, "embed_dim 8 is not divisible by heads 3"),
        (SMALL, {"head": "pair"}, "head must be one of classes, tokens, got 'pair'"),
        (SMALL, {"dropout": 1.0}, "dropout is 1.0; expected a number from 0 to below 1"),
        (SMALL, {"layers": 0}, "layers must be at least 1, got 0"),
        (DataMUXConvConfig(), {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (DataMUXConvConfig(), {"image_size": 19}, "image_size must be at least 20, .* got 19"),
    ],
)
def test_configurations_check_themselves(config, wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **wrong)


@pytest.mark.parametrize(
    "config", [DataMUXConvConfig(capacity=2, mean=(0.5,), std=(0.25,), class_names=tuple("abcdefghij")), SMALL]
)
def test_a_finished_network_comes_back_as_it_was(config, tmp_path):
    network = describe(config).build().eval()
    network.save_pretrained(tmp_path / "model", accuracy={config.capacity: 0.5}, command="mimonets mnist_datamux_n2")
    known, loaded = load_finished(tmp_path, torch.device("cpu"))
    assert (known.config, loaded.config, loaded.accuracy) == (config, config, {config.capacity: 0.5})
    items = known.example(5, torch.device("cpu"))
    assert torch.equal(known.predict(loaded, items, config.capacity), known.predict(network, items, config.capacity))
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"from mimo_benchmarks.networks.datamux import {type(network).__name__}" in card
    assert "mimonets mnist_datamux_n2" in card


@pytest.mark.parametrize(
    ("config", "field", "value", "words"),
    [
        (SMALL, "layers", 10**9, r"far more than the \d+ tensors"),
        (SMALL, "heads", 2.0, r"config\.heads is 2\.0; expected a whole number"),
        (SMALL, "head", "pair", r'config\.head is "pair"; expected one of classes, tokens'),
        (SMALL, "words", [3], r"config\.words\[0\] is 3; expected text"),
        (DataMUXConvConfig(), "capacity", True, r"config\.capacity is true; expected a whole number"),
        (DataMUXConvConfig(), "mean", "0.5", r'config\.mean is "0\.5"; expected a list \(each entry a number\) or null'),
        (DataMUXConvConfig(), "std", [0.5], r"mean is None and std is \(0\.5,\): give both or neither"),
        (DataMUXConvConfig(), "class_names", ["a"], "class_names has 1 names, but num_classes is 10"),
    ],
)
def test_a_configuration_of_another_program_is_refused(config, field, value, words, tmp_path):
    """Every field is held against its type, and nothing large is built."""
    describe(config).build().save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["config"][field] = value
    del entries["sha256"]
    entries["sha256"] = digest(entries, (tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=f"no network can be read from {re.escape(str(tmp_path))} .*{words}"):
        load_finished(tmp_path, torch.device("cpu"))


def test_uint8_images_are_normalised_by_the_configuration():
    config = DataMUXConvConfig(capacity=2, mean=(0.5,), std=(0.25,))
    known, images = describe(config), torch.randint(256, (4, 1, 20, 20), dtype=torch.uint8)
    network = known.build().eval()
    assert_close(known.predict(network, images, 2), known.predict(network, (images / 255 - 0.5) / 0.25, 2))
