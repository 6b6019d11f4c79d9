import pandas as pd

from raysat.plots.views import deepening


def test_targets_go_from_easy_to_hard_metric_by_metric_whatever_their_labels():
    rows = [("test_accuracy", 0.9), ("train_loss", 0.1), ("test_accuracy", 0.8), ("train_loss", 0.7)]
    table = pd.DataFrame(rows, columns=["metric", "target"], index=[0, 0, 1, 1])
    ordered = deepening(table)
    expected = [("test_accuracy", 0.8), ("test_accuracy", 0.9), ("train_loss", 0.7), ("train_loss", 0.1)]
    assert list(ordered.itertuples(index=False, name=None)) == expected
