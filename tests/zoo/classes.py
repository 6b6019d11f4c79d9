"""The classes of torch.nn that need no case of their own, each with the reason: a constructor that shows it."""

from __future__ import annotations

from functools import partial

from torch import nn

ABSTRACT = {nn.Module, nn.Container, nn.RNNBase, nn.RNNCellBase}
"""Without a forward of their own."""

LAZY = {member for name, member in vars(nn).items() if name.startswith("Lazy")}
"""Without weights until they have seen a sample: refused by name, see `refused.py`."""

_PLAIN = """
CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish RReLU ReLU ReLU6 SELU
SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink
AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout
Flatten Identity CosineSimilarity PairwiseDistance Upsample UpsamplingBilinear2d UpsamplingNearest2d
Sequential ModuleDict ModuleList
BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss HuberLoss
KLDivLoss L1Loss MSELoss MarginRankingLoss MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss
NLLLoss NLLLoss2d PoissonNLLLoss SmoothL1Loss SoftMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss
"""
_ONE_NUMBER = """
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
AvgPool1d AvgPool2d AvgPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d
ChannelShuffle LocalResponseNorm CrossMapLRN2d PixelShuffle PixelUnshuffle Unfold
CircularPad1d CircularPad2d CircularPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d
ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d
"""
_SEVERAL = {
    "ConstantPad1d": (1, 0.5),
    "ConstantPad2d": (1, 0.5),
    "ConstantPad3d": (1, 0.5),
    "Fold": (4, 2),
    "LPPool1d": (2, 2),
    "LPPool2d": (2, 2),
    "LPPool3d": (2, 2),
    "Threshold": (0.1, 0.0),
    "Unflatten": (1, (2, 2)),
}

WITHOUT_PARAMETERS = {getattr(nn, name): getattr(nn, name) for name in _PLAIN.split()}
WITHOUT_PARAMETERS |= {getattr(nn, name): partial(getattr(nn, name), 2) for name in _ONE_NUMBER.split()}
WITHOUT_PARAMETERS |= {getattr(nn, name): partial(getattr(nn, name), *args) for name, args in _SEVERAL.items()}
WITHOUT_PARAMETERS[nn.FractionalMaxPool2d] = partial(nn.FractionalMaxPool2d, 2, output_ratio=0.5)
WITHOUT_PARAMETERS[nn.FractionalMaxPool3d] = partial(nn.FractionalMaxPool3d, 2, output_ratio=0.5)
"""Activations, random layers, pools, paddings, shapes, losses and empty containers, each with a constructor."""
