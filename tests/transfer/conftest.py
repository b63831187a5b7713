"""Fixtures of the tests of transfer."""

from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_repo(monkeypatch):
    """The repository's root as the working directory, and no number of GPUs from outside."""
    monkeypatch.chdir(REPO)
    monkeypatch.delenv('GPUS', raising=False)


@pytest.fixture(scope='session')
def backbone(tmp_path_factory):
    """A backbone file of a ResNet-18, for mmdet and mmseg."""
    from torchvision.models import resnet18

    from transfer import contenders

    folder = tmp_path_factory.mktemp('backbone')
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), folder / 'r18.pth')
    return contenders.backbone_file('A', str(folder / 'r18.pth'), folder)
