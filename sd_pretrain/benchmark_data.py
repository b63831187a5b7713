"""Speed of reading training images: pipelines side by side, workers, their memory, the cores a GPU needs."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from sd_pretrain.benchmark import Section, interleaved, ratio, spread
from sd_pretrain.benchmark_images import BASELINE, SIZE, choose_images, generate_photos, load_ours, peers

# An assumption, not a measurement: a ResNet's training is bound by memory traffic, of which a compiled R152
# at 224 px leaves an H100 about 2,100 img/s; the others in proportion to their 4.11, 7.83 and 11.56 GMAC.
ASSUMED_GPU_RATES = {'resnet50': 5900.0, 'resnet101': 3100.0, 'resnet152': 2100.0}
OURS, MARKED = 'ours', 'ours, restart markers'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this part."""
    parser.add_argument(
        '--gpu-rate',
        nargs='+',
        type=_rate,
        metavar='NETWORK=IMG/S',
        default=list(ASSUMED_GPU_RATES.items()),
        help='what one GPU trains on, for the cores that it needs; default: assumed for an H100 '
        f'({", ".join(f"{name}={value:.0f}" for name, value in ASSUMED_GPU_RATES.items())})',
    )


def _rate(text: str) -> tuple[str, float]:
    name, _, value = text.partition('=')
    if not name or not re.fullmatch(r'\d+(\.\d+)?', value) or float(value) == 0:
        raise argparse.ArgumentTypeError(
            f'{text}: NETWORK=IMAGES_PER_SECOND is needed, such as resnet152=2100'
        )
    return name, float(value)


def measure(args: argparse.Namespace) -> Iterator[Section]:
    """Tables: pipelines on one core, workers of the loader, memory of a worker, cores that a GPU needs.

    Raises:
        InputError: ``args.data_root`` has no ILSVRC2012.
    """
    rounds = args.rounds or (5 if args.quick else 15)
    with tempfile.TemporaryDirectory() as folder:
        root = (
            args.data_root / 'ILSVRC2012' if args.data_root else generate_photos(Path(folder) / 'generated')
        )
        paths, marked, about = choose_images(root, Path(folder), 48 if args.quick else 120)
        about = f'{about} {"of " + str(root) if args.data_root else "generated, no real photos"}'
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            section = _pipelines(paths, marked, about, rounds)
            yield section
            yield _cores(section.data['images_per_second'], args.gpu_rate)
        finally:
            torch.set_num_threads(threads)
        yield _workers(root, about, min(rounds, 3 if args.quick else 7), 96 if args.quick else 256)
        yield _memory(root, about, 400 if args.quick else 4000)


def _pipelines(paths: Sequence[str], marked: Sequence[str], about: str, rounds: int) -> Section:
    cases = {name: _over(load, paths) for name, load in peers().items()}
    cases[OURS] = _over(load_ours, paths)
    cases[MARKED] = _over(load_ours, marked)
    seconds = interleaved(cases, rounds)
    rates = {name: [len(paths) / value for value in values] for name, values in seconds.items()}
    ratios = {name: ratio(seconds[BASELINE], values) for name, values in seconds.items()}
    return Section(
        'data',
        'Training images on one core: read, decode, random resized crop to 224',
        ('pipeline', 'images/s', f'x {BASELINE}'),
        [(name, spread(rates[name]).show(0), ratios[name].show()) for name in cases],
        (
            f'{about}, in the page cache. All resize bilinearly, mmcv (OpenCV) without antialiasing: other '
            'pixels. The results are uint8, not yet in a batch.',
        ),
        {
            'images': about,
            'seconds': seconds,
            'images_per_second': {name: spread(values).median for name, values in rates.items()},
            'ratios': {name: value._asdict() for name, value in ratios.items()},
        },
    )


def _over(load: Callable[[str], object], paths: Sequence[str]) -> Callable[[], None]:
    # Not seeded in each round: the rounds' crops differ, and chance with them.
    def run() -> None:
        for path in paths:
            load(path)

    return run


def _cores(rates: Mapping[str, float], gpu_rates: Sequence[tuple[str, float]]) -> Section:
    names = (BASELINE, OURS, MARKED)
    assumed = all(ASSUMED_GPU_RATES.get(network) == rate for network, rate in gpu_rates)
    needed = {network: {name: rate / rates[name] for name in names} for network, rate in gpu_rates}
    return Section(
        'data_cores',
        'Cores that one GPU needs for its training images',
        ('network', 'GPU, images/s', *names),
        [
            (network, f'{rate:,.0f}', *(str(math.ceil(needed[network][name])) for name in names))
            for network, rate in gpu_rates
        ],
        (
            "The GPU's images/s are "
            + ('assumed (a model of an H100, compiled, at 224 px), not measured' if assumed else 'as given')
            + "; the cores' are those of the table before, and cores are taken to add up.",
        ),
        {'gpu_images_per_second': dict(gpu_rates), 'assumed': assumed, 'cores': needed},
    )


def _workers(root: Path, about: str, rounds: int, images_each: int) -> Section:
    """Images per second of the loader by its number of workers, which are started before."""
    from sd_pretrain.imagenet import ImageNetFolder
    from sd_pretrain.launch import cpu_share

    dataset = ImageNetFolder(str(root), size=SIZE)
    cores = cpu_share(1)
    counts = [0, *(1 << power for power in range(cores.bit_length()) if 1 << power < cores), cores]
    images = {count: images_each * max(count, 1) for count in counts}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaders = {str(count): _loader(dataset, count, images[count]) for count in counts}
        cases = {name: lambda loader=loader: sum(1 for _ in loader) for name, loader in loaders.items()}
        seconds = interleaved(cases, rounds)
    finally:
        torch.set_num_threads(threads)
    rates = {count: [images[count] / value for value in seconds[str(count)]] for count in counts}
    times = {count: ratio(rates[count], rates[0]) for count in counts}
    return Section(
        'data_workers',
        'The loader by its workers',
        ('workers', 'images/s', 'x no workers'),
        [(str(count), spread(rates[count]).show(0), times[count].show()) for count in counts],
        (f'Batches of 32: {about}; {cores} cores.',),
        {
            'seconds': seconds,
            'images': {str(count): value for count, value in images.items()},
            'ratios': {str(count): value._asdict() for count, value in times.items()},
        },
    )


def _loader(dataset: torch.utils.data.Dataset, workers: int, images: int) -> torch.utils.data.DataLoader:
    from torch.utils.data import DataLoader, RandomSampler

    # With replacement: the number of images does not depend on how many there are.
    sampler = RandomSampler(dataset, replacement=True, num_samples=images)
    return DataLoader(
        dataset, batch_size=32, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )


def _memory(root: Path, about: str, images: int) -> Section:
    """Memory of one worker over an epoch."""
    from sd_pretrain.imagenet import ImageNetFolder

    before = {child.pid for child in multiprocessing.active_children()}
    loader = _loader(ImageNetFolder(str(root), size=SIZE), 1, images)
    readings = []
    for batch, _ in enumerate(loader):
        worker = next(child.pid for child in multiprocessing.active_children() if child.pid not in before)
        readings.append((32 * (batch + 1), *_memory_of(worker)))
    marks = sorted({round((len(readings) - 1) * share) for share in (0.25, 0.5, 0.75, 1.0)})
    return Section(
        'data_memory',
        'Memory of one worker over an epoch',
        ('images', 'own and shared (RSS), MB', 'with its share of the shared (PSS), MB'),
        [
            (f'{seen:,}', *('-' if value is None else f'{value / 1e6:.0f}' for value in values))
            for seen, *values in (readings[0], *(readings[mark] for mark in marks))
        ],
        (
            f'An epoch of {images:,} images, drawn with replacement: {about}. A worker is forked: what this '
            'process holds counts, too.',
        ),
        {
            'images': [seen for seen, _, _ in readings],
            'rss_bytes': [rss for _, rss, _ in readings],
            'pss_bytes': [pss for _, _, pss in readings],
        },
    )


def _memory_of(pid: int) -> tuple[int | None, int | None]:
    """RSS and PSS of a process in bytes, where the system tells."""
    try:
        text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    except OSError:
        return None, None
    found = dict(re.findall(r'^(Rss|Pss):\s+(\d+) kB', text, re.MULTILINE))
    return tuple(1024 * int(found[name]) for name in ('Rss', 'Pss'))
