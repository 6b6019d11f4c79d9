"""The sweep whose results, written by raysat 0.1.0, lie in `results-0.1.0/`."""

from raysat import Sweep, Training, asynchronous, mlp, resnet, theory

sweep = Sweep(
    name="recorded",
    dataset="digits",
    n_train=32,
    n_test=16,
    models=[mlp(depth=2), resnet(depth=10)],
    widths=[4],
    batch_sizes=[8],
    stepsizes=[theory()],
    trainings=[Training(), Training(optimizer="adam", schedule="cosine"), asynchronous(2)],
    iterations=20,
    seeds=1,
)
