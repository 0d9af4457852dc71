"""Short training runs on associative recall: what each kind of MIMOFormer learns beyond guesses that ignore the question.

A run repeats on one machine; another's rounding takes it elsewhere, by a percent or two of accuracy. Bounds leave room for that.
"""

import pytest
import torch
from torch.nn import functional as F

from mimo_benchmarks.data.synthetic.recall import VS10, associative_recall, query_blind
from mimoformer import MIMOFormer, MIMOFormerConfig, predict

SMALL = {"vocab_size": 6, "pairs": 6}
"""2 keys and 2 values: 500 sequences in all."""
pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]


def learnt(task, sequences, *, steps, alone=0, lr=4e-3, seed=0, **options):
    """Accuracy on sequences held out after `steps` steps of 16 passes, the first `alone` of them of one sequence each.

    Args:
        task: the setting of `associative_recall`.
        sequences: how many are trained on and how many held out; no two of them are equal.
        options: of the network, apart from those of H3's tasks.

    Returns:
        The share of last tokens that are right, and the highest share of those that need no look at the question.
    """
    generator = torch.Generator().manual_seed(seed)
    train, test = associative_recall(sum(sequences), **task, generator=generator).split(sequences)
    sizes = {"layers": 2, "embed_dim": 64, "heads": 1, "mlp_dim": 128, "features": 128, "activation": "gelu", "dropout": 0.0}
    positions = {"vocab_size": task["vocab_size"], "max_length": 2 * task["pairs"] + 2}
    torch.manual_seed(seed)
    model = MIMOFormer(MIMOFormerConfig(**{"head": "tokens"} | sizes | positions | options))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 200, 1) * (1 - step / steps))
    m, n = model.config.m, model.config.n
    for step in range(steps):
        grid = (16, 1, 1) if step < alone else (16, m, n)
        tokens = train[torch.randint(len(train), grid, generator=generator)]
        asked = tokens[..., -1] if model.config.head == "last" else tokens[..., 1:]
        loss = F.cross_entropy(model(tokens[..., :-1]).flatten(0, -2), asked.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    answers = predict(model, test[:, :-1], m, n).flatten(1)[:, -task["vocab_size"] :].argmax(-1)
    return float((answers == test[:, -1]).double().mean()), max(query_blind(test, vocab_size=task["vocab_size"]).values())


def test_four_sequences_in_superposition_recall():
    """Causal att. with FAVOR+S on a grid of 2 x 2, the vs10 setting: above 90 %, where the best blind guess gets 52 to 55 %.

    Seeds 0, 1 and 2, on which the learning rate was chosen, gave 92.2, 97.8 and 91.9 % of 2,000 sequences held out, in 117 to
    131 s of one CPU core each. Seeds that were not, 3 and 4, gave 86.2 % (88.3 % after 9,000 steps, 159 s) and 93.1 %: most get
    above 90 in three minutes, not all. The first 1,500 of the 7,000 steps see a sequence a pass.
    """
    accuracy, blind = learnt(VS10, [200_000, 2_000], steps=7_000, alone=1_500, lr=3e-3, m=2, n=2)
    assert accuracy > 0.9
    assert blind < 0.57


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (500, {"m": 1, "n": 1, "attention": "softmax"}),
        (500, {"m": 1, "n": 1}),
        (800, {"m": 2, "n": 2, "variant": "att+mlp"}),
        (800, {"m": 2, "n": 2, "attention": "positive"}),
        (600, {"m": 2, "n": 2, "attention": "dpfp", "nu": 1}),
        (800, {"m": 2, "n": 2, "head": "last"}),
    ],
    ids=["Transformer", "Performer", "att+mlp", "positive", "dpfp", "encoder"],
)
def test_every_kind_learns_a_small_setting(steps, options):
    """400 of all 500 sequences with 2 keys, 2 values and 6 pairs, the others held out: at least 85 % of the 100 right, where the
    best blind guess gets 73 %. Measured: 97, 99, 98, 100, 97 and 96 %."""
    accuracy, blind = learnt(SMALL, [400, 100], steps=steps, **options)
    assert accuracy > 0.85
    assert blind < 0.8
