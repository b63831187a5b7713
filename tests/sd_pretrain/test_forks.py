"""Runs that begin alike: forks of one another, and the same initial weights by ``init_seed``."""

import pytest
import torch
from cifar_common import EPOCHS, checkpoint, same_weights, tiny_training, write_cifar

from sd_pretrain.classifier import TimmClassifier


@pytest.fixture(scope='module')
def train(run_tool, tmp_path_factory):
    return tiny_training(run_tool, write_cifar(tmp_path_factory.mktemp('cifar')))


def test_a_fork_with_another_seed_shares_the_weights_and_nothing_after(train, tmp_path):
    assert train(tmp_path / 'main') == 0
    main = tmp_path / 'main' / 'epoch_1.pth'
    assert train(tmp_path / 'same', 'fork=True', resume=main) == 0
    assert train(tmp_path / 'other', 'fork=True', 'randomness.seed=9', resume=main) == 0
    assert same_weights(checkpoint(tmp_path / 'main', EPOCHS), checkpoint(tmp_path / 'same', EPOCHS))
    assert not same_weights(checkpoint(tmp_path / 'main', 2), checkpoint(tmp_path / 'other', 2))
    assert checkpoint(tmp_path / 'other', 2)['meta']['seed'] == 9
    # Broken off and resumed, the fork keeps its own randomness.
    again = tmp_path / 'other' / 'epoch_2.pth'
    assert train(tmp_path / 'again', 'fork=True', 'randomness.seed=9', resume=again) == 0
    assert same_weights(checkpoint(tmp_path / 'other', EPOCHS), checkpoint(tmp_path / 'again', EPOCHS))


def test_a_fork_is_not_forked_again(train, tmp_path, capfd):
    assert train(tmp_path / 'main') == 0
    seed = ['fork=True', 'randomness.seed=9']
    assert train(tmp_path / 'other', *seed, resume=tmp_path / 'main' / 'epoch_1.pth') == 0
    late = tmp_path / 'other' / 'epoch_2.pth'
    assert train(tmp_path / 'third', 'fork=True', 'randomness.seed=10', resume=late) == 2
    assert 'randomness.seed was 9, now 10' in capfd.readouterr().err


def test_one_init_seed_gives_one_start_whatever_the_run_draws():
    def start(run_seed, init_seed):
        torch.manual_seed(run_seed)
        model = TimmClassifier('cifar_resnet20', num_classes=4, init_seed=init_seed)
        return model.network.conv1.weight, torch.rand(1)

    (first, after_first), (second, after_second) = start(1, 7), start(2, 7)
    assert torch.equal(first, second)
    assert not torch.equal(after_first, after_second)
    assert not torch.equal(first, start(1, 8)[0])
    assert not torch.equal(start(1, None)[0], start(2, None)[0])
