"""The data part of tools/benchmark.py, run small on generated images: its tables are complete."""

import argparse
import json

import pytest

from sd_pretrain import benchmark_data
from sd_pretrain.benchmark import write_section
from sd_pretrain.benchmark_data import ASSUMED_GPU_RATES, MARKED, OURS
from sd_pretrain.benchmark_images import BASELINE, generate_photos
from sd_pretrain.jpeg_file import parse_baseline


def parse(*arguments):
    parser = argparse.ArgumentParser()
    benchmark_data.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture(scope='module')
def sections():
    args = argparse.Namespace(
        **vars(parse('--gpu-rate', 'resnet50=1000')), quick=True, rounds=1, device='cpu', data_root=None
    )
    return {section.name: section for section in benchmark_data.measure(args)}


def test_every_pipeline_has_a_rate_and_a_ratio(sections):
    section = sections['data']
    names = [row[0] for row in section.rows]
    assert names[0] == BASELINE and names[-2:] == [OURS, MARKED]
    assert any('v2' in name for name in names) and {'timm', 'mmcv'} < set(names)
    assert 'generated, no real photos' in section.markdown()
    seconds = section.data['seconds']
    assert seconds.keys() == set(names) and all(len(values) == 1 for values in seconds.values())
    expected = seconds[BASELINE][0] / seconds[OURS][0]
    assert section.data['ratios'][OURS]['median'] == pytest.approx(expected)
    assert section.data['ratios'][BASELINE] == {'median': 1, 'low': 1, 'high': 1}


def test_cores_follow_from_the_rates(sections):
    data = sections['data_cores'].data
    rates = sections['data'].data['images_per_second']
    assert data['cores']['resnet50'] == {
        name: pytest.approx(1000 / rates[name]) for name in (BASELINE, OURS, MARKED)
    }
    assert not data['assumed'] and 'as given' in sections['data_cores'].notes[0]


def test_assumed_rates_are_called_assumed():
    args = parse()
    rates = dict.fromkeys((BASELINE, OURS, MARKED), 1000.0)
    section = benchmark_data._cores(rates, args.gpu_rate)
    assert [row[0] for row in section.rows] == list(ASSUMED_GPU_RATES)
    assert section.rows[2] == ('resnet152', '2,100', '3', '3', '3')
    assert 'assumed' in section.notes[0] and 'not measured' in section.notes[0]


def test_workers_and_memory(sections):
    workers = sections['data_workers']
    assert [row[0] for row in workers.rows[:2]] == ['0', '1']
    assert all(values['median'] > 0 for values in workers.data['ratios'].values())
    memory = sections['data_memory'].data
    assert memory['images'][0] == 32 and memory['images'] == sorted(memory['images'])
    assert len(memory['rss_bytes']) == len(memory['pss_bytes']) == len(memory['images'])
    assert all(1e7 < pss <= rss for pss, rss in zip(memory['pss_bytes'], memory['rss_bytes'], strict=True))


def test_sections_are_json(sections, tmp_path):
    for section in sections.values():
        path = write_section(section, tmp_path, {})
        assert json.loads(path.read_text())['name'] == section.name


@pytest.mark.parametrize('rate', ['resnet50', 'resnet50=fast', 'resnet50=0', '=7'])
def test_wrong_rate_is_refused(rate, capsys):
    with pytest.raises(SystemExit):
        parse('--gpu-rate', rate)
    assert 'resnet152=2100' in capsys.readouterr().err


def test_generated_photos_are_what_is_decoded_in_part(tmp_path):
    root = generate_photos(tmp_path, 4)
    contents = [path.read_bytes() for path in root.rglob('*.JPEG')]
    assert {parse_baseline(content)[:2] for content in contents} == {(500, 375)}
    shares = [len(content) / (500 * 375) for content in contents]
    assert 0.2 < min(shares) <= max(shares) < 1.0, 'bytes a pixel: real photos have about 0.6'
