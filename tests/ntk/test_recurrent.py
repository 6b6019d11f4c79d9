"""Recurrent layers as loops give the results of PyTorch's own kernels."""

import pytest
import torch
from torch import nn

from raysat.ntk.recurrent import unrolled


def tensors(result):
    output, last = result
    return [output, *(last if isinstance(last, tuple) else (last,))]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bidirectional": True, "num_layers": 2},
        {"bias": False, "num_layers": 2},
        {"proj_size": 3, "num_layers": 2, "bidirectional": True},
        {"nonlinearity": "relu"},
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [True, False])
def test_a_loop_is_the_layer(kind, options, batched):
    if ("proj_size" in options and kind is not nn.LSTM) or ("nonlinearity" in options and kind is not nn.RNN):
        pytest.skip("an option of another layer")
    torch.manual_seed(0)
    layer = kind(4, 5, **options).double()
    x = torch.randn(6, 3, 4, dtype=torch.float64) if batched else torch.randn(6, 4, dtype=torch.float64)
    for start in (None, layer(x)[1]):
        expected = tensors(layer(x, start))
        with unrolled(layer):
            found = tensors(layer(x, start))
        assert [each.shape for each in found] == [each.shape for each in expected]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert "forward" not in vars(layer)


def test_packed_sequences_go_to_the_layer_itself():
    layer = nn.GRU(4, 5)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(6, 3, 4), torch.tensor([6, 4, 2]))
    with unrolled(layer):
        output, _ = layer(packed)
    torch.testing.assert_close(output.data, layer(packed)[0].data)
