"""A network of several inputs, in a module that other processes can import."""

from torch import nn


class Pooled(nn.Module):
    """The mean of a sample's tokens under a mask, classified."""

    def __init__(self, width=6, vocabulary=9, outputs=3):
        super().__init__()
        self.tokens, self.inner = nn.Embedding(vocabulary, width), nn.Linear(width, width)
        self.head, self.unused = nn.Linear(width, outputs), nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].to(self.head.weight.dtype)
        values = self.inner(self.tokens(input_ids)).tanh() * mask
        return self.head(values.sum(1) / mask.sum(1))
