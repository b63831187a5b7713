import json

import pytest
import torch

from sd_pretrain import classifier
from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.teacher import FrozenTeacher


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TimmClassifier('test_resnet', num_classes=4).eval()


def test_hits_of_all_batches_are_counted_and_no_part_of_the_loss(model):
    model.attach_teacher(FrozenTeacher(model.network))
    images = torch.randn(6, 3, 32, 32)
    truth = model(images).argmax(1)
    labels = truth.clone()
    labels[[1, 4, 5]] = (labels[[1, 4, 5]] + 1) % 4
    losses = model(images[:4], labels[:4], mode='loss')
    assert set(losses) == {'loss_ce', 'loss_kl'}
    torch.testing.assert_close(model.parse_losses(losses)[0], losses['loss_ce'] + losses['loss_kl'])
    model(images[4:], labels[4:], mode='loss')
    assert (int(model.train_hits), model.train_seen) == (3, 6)
    model(images, labels, mode='predict')
    assert model.train_seen == 6
    assert not model.train_hits.requires_grad
    assert all(name.startswith('network.') for name in model.state_dict())


def test_probabilities_count_by_their_largest(model):
    images = torch.randn(2, 3, 32, 32)
    labels = torch.softmax(model(images), 1).detach()
    model(images, labels, mode='loss')
    assert int(model.train_hits) == 2


def test_a_training_logs_it_once_an_epoch_also_after_a_resume(
    tiny_config, image_folder, tmp_path, run_tool, monkeypatch
):
    counts = []
    loss = classifier.sd_loss

    def counted(logits, teacher_logits, labels, **more):
        counts.append(int((logits.argmax(1) == labels).sum()))
        return loss(logits, teacher_logits, labels, **more)

    monkeypatch.setattr(classifier, 'sd_loss', counted)
    work_dir = tmp_path / 'run'
    args = (tiny_config, '--data-root', image_folder, '--work-dir', work_dir)
    assert run_tool('train.py', *args) == 0
    (work_dir / 'result.json').unlink()
    assert run_tool('train.py', *args, '--resume', work_dir / 'epoch_2.pth') == 0
    # 24 images in three batches an epoch; the resumed run repeats the third epoch.
    expected = [100 * sum(counts[at : at + 3]) / 24 for at in range(0, 12, 3)]
    lines = [
        json.loads(line)
        for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]
    found = [(line['step'], line['train/top1']) for line in lines if 'train/top1' in line]
    assert found == list(zip((1, 2, 3, 3), map(pytest.approx, expected), strict=True))
