import torch

from sd_pretrain.metrics import TopKAccuracy


def samples(logits, labels):
    pairs = zip(torch.tensor(logits), torch.tensor(labels), strict=True)
    return [{'logits': row, 'label': label} for row, label in pairs]


def test_top1_and_top5_by_hand():
    metric = TopKAccuracy()
    order = [6.0, 5, 4, 3, 2, 1, 0]
    metric.process(None, samples([order, order], [0, 4]))
    metric.process(None, samples([order], [5]))
    result = metric.evaluate(3)
    assert result == {'accuracy/top1': 100 / 3, 'accuracy/top5': 200 / 3}


def test_samples_that_fill_the_last_batch_are_not_counted():
    metric = TopKAccuracy((1,))
    metric.process(None, samples([[1.0, 0], [1.0, 0], [1.0, 0]], [0, 1, 1]))
    assert metric.evaluate(2) == {'accuracy/top1': 50.0}


def test_fewer_classes_than_k():
    metric = TopKAccuracy()
    metric.process(None, samples([[0.0, 1, 2]], [0]))
    assert metric.evaluate(1) == {'accuracy/top1': 0.0, 'accuracy/top5': 100.0}
