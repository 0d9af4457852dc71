"""One network for any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mimoformer import create_model, predict


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["att", "att+mlp", "blurry"])
def test_predict_from_many_threads_with_every_grid(variant, training):
    """With dropout of a half, a layer in training mode would give other answers."""
    sizes = {"layers": 2, "embed_dim": 16, "heads": 2, "head_dim": 8, "mlp_dim": 16, "features": 8, "max_length": 12}
    model = create_model("mimoformer_listops_deep", m=2, n=2, variant=variant, dropout=0.5, **sizes).train(training)
    tokens, grids = torch.randint(1, 32, (7, 12)), [(1, 1), (1, 2), (2, 1), (2, 2)]
    expected = {grid: predict(model, tokens, grid) for grid in grids}
    with ThreadPoolExecutor(8) as pool:
        asked = grids * 15
        answers = list(pool.map(lambda grid: predict(model, tokens, grid), asked))
    assert all(torch.equal(answer, expected[grid]) for grid, answer in zip(asked, answers, strict=True))
    assert all(layer.training is training for layer in model.modules())


def test_training_in_the_midst_of_predict():
    model = create_model("mimoformer_image_deep", m=2, n=2, layers=2, mlp_dim=16, max_length=12).train()
    tokens, modes = torch.randint(256, (4, 12)), []
    model.blocks[1].register_forward_pre_hook(lambda layer, _: modes.append((layer.training, model.training)))
    predict(model, tokens)
    assert modes == [(False, True)]
