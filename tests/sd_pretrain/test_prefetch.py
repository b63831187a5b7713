"""Batches on their way to the network: their layout, and the copy one batch ahead."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch.utils.data import DataLoader, default_collate

from sd_pretrain.prefetch import PrefetchingLoader, collate_channels_last, map_tensors, one_ahead
from sd_pretrain.preprocessor import ImageBatchPreprocessor


@pytest.fixture
def samples():
    images = torch.randint(0, 256, (4, 3, 6, 5), generator=torch.Generator().manual_seed(0))
    return [{'inputs': image.to(torch.uint8), 'labels': label} for label, image in enumerate(images)]


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('pixels_last', [False, True])
def test_a_batch_has_its_pixels_last(samples, workers, pixels_last):
    """Whatever the layout of its images; also once it has come out of a worker."""
    if pixels_last:
        for sample in samples:
            image = sample['inputs'].permute(1, 2, 0).contiguous().permute(2, 0, 1)
            sample['inputs'] = image
    (batch,) = DataLoader(samples, 4, num_workers=workers, collate_fn=collate_channels_last)
    expected = default_collate(samples)
    assert torch.equal(batch['inputs'], expected['inputs'])
    assert torch.equal(batch['labels'], expected['labels'])
    assert batch['inputs'].permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize('channels_last', [False, True])
def test_the_preprocessor_takes_both_layouts(samples, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    results = []
    for collate in (default_collate, collate_channels_last):
        preprocessor = ImageBatchPreprocessor(rotation=10, jitter=0.4, channels_last=channels_last)
        preprocessor.set_seed(3)
        results.append(preprocessor(collate(samples), training=True)['inputs'])
    assert all(result.is_contiguous(memory_format=layout) for result in results)
    torch.testing.assert_close(*results)
    plain = [ImageBatchPreprocessor()(collate(samples))['inputs'] for collate in (default_collate,
             collate_channels_last)]  # fmt: skip
    assert torch.equal(*plain)


def test_the_next_batch_is_started_before_one_is_handed_out():
    events = []
    batches = (events.append(f'read {number}') or number for number in range(3))

    def note(what):
        return lambda number: events.append(f'{what} {number}') or number

    for number in one_ahead(batches, note('start'), note('finish')):
        events.append(f'train {number}')
    assert events == [
        *('read 0', 'start 0', 'read 1', 'start 1', 'finish 0', 'train 0'),
        *('read 2', 'start 2', 'finish 1', 'train 1', 'finish 2', 'train 2'),
    ]
    assert list(one_ahead([], note('start'), note('finish'))) == []
    assert list(one_ahead([7], note('start'), note('finish'))) == [7]


def test_tensors_are_found_in_nested_batches():
    batch = {'a': [torch.tensor(1), 'text'], 'b': (torch.tensor(2), None)}
    assert map_tensors(lambda one: one + 1, batch) == {
        'a': [torch.tensor(2), 'text'],
        'b': (torch.tensor(3), None),
    }


def test_the_loader_is_the_wrapped_one_in_all_else(samples):
    loader = DataLoader(samples, 2, collate_fn=collate_channels_last)
    wrapped = PrefetchingLoader(loader, torch.device('cuda'))
    assert len(wrapped) == 2
    assert (wrapped.dataset, wrapped.batch_sampler) == (samples, loader.batch_sampler)
    assert copy.copy(wrapped).loader is loader
    with pytest.raises(AttributeError, match='no_such_thing'):
        wrapped.no_such_thing  # noqa: B018


def test_all_epochs_are_copied_on_one_stream(monkeypatch):
    """The memory of each stream is its own: with a new one an epoch, up to 32 times as much would be kept."""
    made = []
    monkeypatch.setattr('torch.cuda.Stream', lambda device: made.append(device) or object())
    loader = PrefetchingLoader([], torch.device('cuda'))
    assert made == []
    for _ in range(3):
        list(loader)
    assert made == [loader.device]


def test_a_run_without_a_gpu_keeps_its_loader(run_tool, tiny_config, image_folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        'mmengine.hooks.DistSamplerSeedHook.before_train_epoch',
        lambda self, runner: seen.append(type(runner.train_dataloader)),
    )
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    places = ['--work-dir', tmp_path / 'run', '--data-root', image_folder]
    assert run_tool('train.py', tiny_config, *places, '--stop-after', '1') == 0
    assert seen == [DataLoader]
    cfg = Config.fromfile(next((tmp_path / 'run').glob('*.py')), import_custom_modules=False)
    assert cfg.default_hooks.prefetch.type == 'PrefetchHook'
    assert cfg.train_dataloader.collate_fn.type == 'collate_channels_last'


@pytest.mark.cuda
@pytest.mark.parametrize('on_device', [False, True])
def test_cuda_batches_arrive_whole_and_in_order(on_device):
    """Large pinned batches, and work on the training stream that still reads one when the next is copied."""
    values = [torch.full((1, 3, 1024, 1024), number, dtype=torch.uint8) for number in range(8)]
    values = [value.cuda() if on_device else value for value in values]
    loader = PrefetchingLoader(
        DataLoader(values, None, pin_memory=not on_device), torch.device('cuda', torch.cuda.current_device())
    )
    weights = torch.randn(4096, 4096, device='cuda')
    sums = []
    torch.cuda.set_sync_debug_mode('error')
    try:
        for batch in loader:
            weights @ weights
            sums.append(batch.long().sum())
            del batch
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.stack(sums).tolist() == [number * 3 * 1024 * 1024 for number in range(8)]
