import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from curves_common import leave_config, log
from PIL import Image

from sd_pretrain.cli import InputError
from transfer.charts import class_chart, forest_chart, recall_chart
from transfer.draw import Detection, draw_boxes
from transfer.provenance import collect_provenance
from transfer.report import duration, resolved_classes, write_report
from transfer.samples import Panel, Sample, choose
from transfer.table5_json import build_table5
from transfer.transfer_report import Confusion


class Page(HTMLParser):
    """Collects what the tests ask of a page, and fails on tags that do not close in order."""

    VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def result(name, task, seed, metrics, per_class):
    return {
        'name': name,
        'task': task,
        'seed': seed,
        'config': f'configs/demo/{task}.py',
        'arch': 'resnet18',
        'backbone': f'work_dirs/{name}.pth',
        'sha256': 64 * name[0],
        'metrics': metrics,
        'per_class': per_class,
    }


@pytest.fixture(scope='module')
def table5():
    per_class = {'dog': 0.4, 'cat': 0.2}
    results = [
        result(
            name, 'det', seed, {'mAP_11point': 0.30 + gain + 0.02 * seed, 'mAP_area': 0.28 + gain}, per_class
        )
        for name, gain in (('BL', 0.0), ('S<D', 0.05))
        for seed in (0, 1)
    ]
    results += [
        result(name, 'seg', 0, {'mIoU': value}, per_class) for name, value in (('BL', 0.25), ('S<D', 0.3))
    ]
    stages = [{'name': 'pretrain BL', 'seconds': 61.5}, {'name': 'det', 'seconds': 30.0}]
    return build_table5(results, data='demo', stages=stages, pretrain={'BL': {'top1': 0.5512, 'top5': 0.8}})


@pytest.fixture(scope='module')
def report(table5, tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    curves = {name: log(folder / name, '20260101_000000', 1, 4) for name in ('BL', 'S<D')}
    leave_config(curves['S<D'], [2, 4])
    photo = Image.new('RGB', (160, 128), (90, 120, 150))
    panels = tuple(
        Panel(
            title,
            draw_boxes(photo, [Detection('dog', (10, 10, 60, 60), score)], ['dog']),
            f'{title}: dog {score}',
        )
        for title, score in (('truth', None), ('BL', 0.71), ('S<D', 0.92))
    )
    provenance = collect_provenance(['bash tools/table5.sh --seeds "0 1"'])
    samples = {'det': [Sample('000001', panels)]}
    path = write_report(table5, folder / 'report.html', curves=curves, samples=samples, provenance=provenance)
    assert [one.name for one in folder.iterdir() if one.suffix == '.part'] == []
    return path.read_text()


def test_report_needs_nothing_from_outside(report):
    addresses = [
        value
        for _, attrs in Page(report).tags
        for key, value in attrs.items()
        if key in ('src', 'href', 'xlink:href', 'srcset', 'action')
    ]
    assert addresses
    assert all(value.startswith(('#', 'data:image/')) for value in addresses)
    assert 'http' not in re.sub(r'base64,[^"]*', '', report)
    assert '@import' not in report
    assert not Page(report).all('script')


def test_report_shows_every_number_of_the_table(report):
    text = ' '.join(' '.join(Page(report).text).split())
    # Means of 30 and 32, and of 35 and 37: s = sqrt(2); error of the difference: sqrt(2 / 2 + 2 / 2).
    for number in ('55.12', '80.00', '31.00 ± 1.41', '36.00 ± 1.41', '+5.00 ± 1.41', '33.00 ± 0.00', '25.00'):
        assert number in text
    assert '30.00 +5.00 ± ?' in text
    for seed_value in ('30.00', '32.00', '35.00', '37.00'):
        assert seed_value in text
    for paper in ('73.49', '74.93', '+1.44 ± ?', '77.53', '77.97', '+0.44 ± ?'):
        assert paper in text
    assert 'embedded demo data' in text


def test_report_says_what_was_run(report):
    text = ' '.join(Page(report).text)
    for said in (
        'bash tools/table5.sh --seeds "0 1"',
        'pretrain BL',
        '61.5',
        '1 min 32 s',
        64 * 'S',
        'onedl-mmcv',
    ):
        assert said in text


def test_report_is_sound_html_for_everyone(report):
    page = Page(report)
    ids = [attrs['id'] for _, attrs in page.tags if 'id' in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', report)
    assert set(targets) <= set(ids)
    assert page.all('html')[0]['lang'] == 'en'
    assert [one['name'] for one in page.all('meta') if 'name' in one] == ['viewport', 'color-scheme']
    assert len(page.all('caption')) == len(page.all('table')) > 3
    assert all('scope' in one for one in page.all('th'))
    assert all(one['alt'].startswith('Image 000001, ') for one in page.all('img'))
    assert len(page.all('img')) == 3
    charts = [attrs for _, attrs in page.tags if attrs.get('role') == 'img']
    assert len(charts) == len(page.all('svg')) == 6
    assert all(one['aria-label'] for one in charts)
    assert 'prefers-color-scheme: dark' in report
    assert 'S<D' not in report


def test_mini_generation_boundary_is_drawn_in_every_curve(report):
    charts = re.findall(r'<svg.*?</svg>', report, flags=re.S)
    # In the page's ink and dashed, unlike grid lines; one in each of the three charts over epochs.
    dashed = [len(re.findall(r'stroke-dasharray[^"]*stroke: var\(--ink\)', one)) for one in charts]
    # After the differences the three over epochs, then the classes of both tasks.
    assert dashed == [0, 1, 1, 1, 0, 0]


def test_classes_that_differ_are_named_with_their_difference():
    def one(name, difference, p):
        return {'name': 'SD', 'task': 'det', 'class': name, 'difference': difference, 'p_holm': p}

    found = [one('cat', 0.02, 0.01), one('dog', 0.1, 0.001), one('cow', -0.03, 0.04), one('bus', 0.5, 0.06)]
    assert resolved_classes(found) == [
        'SD, detection: better in dog (+10.0), cat (+2.0); worse in cow (-3.0)'
    ]
    assert resolved_classes(found[3:]) == ['SD, detection: no single class of 1 is resolved']


def test_colours_all_come_from_the_page(report):
    for chart in re.findall(r'<svg.*?</svg>', report, flags=re.S):
        assert set(re.findall(r'(?:fill|stroke): ([^;"]+)', chart)) <= {
            'none',
            *(f'var(--{name})' for name in ('ink', 'grid', 'series-0', 'series-1')),
        }


def test_samples_name_their_own_baseline_where_the_tables_has_not_run_the_task(tmp_path):
    results = [result('BL', 'seg', 0, {'mIoU': 0.5}, {'dog': 0.5})]
    results += [result(name, 'det', 0, {'mAP_11point': 0.5}, {'dog': 0.5}) for name in ('SD', 'SE')]
    photo = Image.new('RGB', (16, 12))
    panels = tuple(Panel(title, photo, title) for title in ('truth', 'SD', 'SE'))
    samples = {'det': [Sample('000001', panels, 'F1: SD 0.10, SE 0.90')]}
    path = write_report(build_table5(results, data='real', stages=[]), tmp_path / 'r.html', samples=samples)
    assert 'on which the backbones differ most from SD,' in path.read_text()


def test_eight_backbones_have_names_and_looks_of_their_own():
    names = [f'backbone number {index}' for index in range(8)]
    bars = class_chart('bars', {name: {'cow': 0.5, 'dog': 0.5} for name in names}, 'AP')
    lines = recall_chart('lines', {name: {'cow': np.ones(3)} for name in names})
    for svg in (bars, lines):
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
        places = re.findall(r' x="([\d.]+)"[^>]*>backbone number \d<', svg)
        assert len(places) == 8 and all(float(x) + 6 * len(names[0]) < width for x in places)
    looks = re.findall(r'style="(fill: var\(--series-\d\)[^"]*)"', bars)
    assert len(set(looks)) == 8
    looks = re.findall(r'style="fill: none;( [^"]*stroke: var\(--series-\d\)[^"]*)"', lines)
    assert len({re.sub(' stroke-line(cap|join): [^;"]*;?', '', look) for look in looks}) == 8


def test_names_of_any_length_leave_the_charts_their_room():
    names = [f'sd_r152_imagenet_temperature2_lambda1.5_90_epochs_from_scratch_run_{run}' for run in (1, 2)]
    charts = [
        forest_chart('forest', [(f'{name}, mAP area', 0.01, 0.0, 0.02) for name in names]),
        class_chart('bars', {name: {'cow': 0.5} for name in names}, 'AP'),
    ]
    for chart in charts:
        lines = re.findall(r'<text[^>]*>([^<]*)<', chart)
        assert max(map(len, lines)) <= 40
        assert all(name[:40] in lines and any(line.startswith(name[40:]) for line in lines) for name in names)


def test_report_of_a_checkpoint_alone_has_no_empty_sections(tmp_path):
    results = [result('BL', 'seg', 0, {'mIoU': 0.5}, {})]
    table5 = build_table5(results, data='real', stages=[])
    text = write_report(table5, tmp_path / 'new' / 'report.html').read_text()
    Page(text)
    assert '50.00' in text
    for absent in ('id="curves"', 'id="classes"', 'id="samples"', 'Pretraining', 'Detection'):
        assert absent not in text


def test_report_says_what_its_numbers_are(table5, tmp_path):
    panels = [Panel(one, Image.new('RGB', (8, 8)), f'{one}: dog') for one in ('truth', 'BL', 'SD')]
    samples = {'det': [Sample('000001', panels, 'F1: BL 0.50, SD 1.00')]}
    recall = {'BL': {'dog': np.linspace(1, 0, 101)}}
    text = write_report(table5, tmp_path / 'report.html', samples=samples, recall=recall).read_text()
    # Table and class charts have the 11-point AP; F1 counts more boxes than are drawn, and fewer true ones.
    assert "the areas below are the classes' area AP." in text
    text = ' '.join(html.unescape(text).split())
    assert "with each image's F1 of all boxes with a score of 0.3 or more, the mean over" in text
    assert 'at most 8 of an image; difficult objects, which do not count, are dashed' in text


@pytest.mark.parametrize(
    ('metrics', 'heading'),
    [
        ('mAP_area_voc0712 mAP_11point_voc0712 mAP_area mAP_11point', 'Detection, VOC2007'),
        ('mAP_area_voc0712 mAP_11point_voc0712', 'Detection, VOC2007 after VOC07+12'),
    ],
)
def test_sections_of_one_data_set_name_it(metrics, heading, tmp_path):
    results = [
        result(name, 'det', 0, {metric: 0.5}, {'dog': 0.5})
        for name in ('BL', 'SD')
        for metric in metrics.split()
    ]
    panels = tuple(Panel(title, Image.new('RGB', (8, 8)), title) for title in ('truth', 'BL', 'SD'))
    path = write_report(
        build_table5(results, data='real', stages=[]),
        tmp_path / 'report.html',
        samples={'det': [Sample('000001', panels, 'F1: BL 0.50, SD 1.00')], 'seg': 'There are no pictures.'},
        recall={'BL': {'dog': np.ones(3)}},
        confusions=[Confusion('det', 'BL', np.eye(2, dtype=int), ['dog', 'nothing'])],
    )
    text = path.read_text()
    assert f'<h3>{heading}</h3>' in text and '<h3>Segmentation</h3>' in text
    assert f'<p class="lead">{heading}, at an overlap of 0.5' in text
    assert f'<strong>BL: {heading}</strong></figcaption>' in text, 'it takes nothing for anything else'


def test_only_what_the_confusion_chart_shows_is_called_frequent(tmp_path):
    counts = np.array([[996, 4, 0], [30, 970, 0], [0, 0, 0]])
    path = write_report(
        build_table5([result('BL', 'det', 0, {'mAP_11point': 0.5}, {})], data='real', stages=[]),
        tmp_path / 'report.html',
        confusions=[Confusion('det', 'BL', counts, ['dog', 'cat', 'nothing'])],
    )
    assert '</strong>; most often cat as dog 3%</figcaption>' in path.read_text()


@pytest.mark.parametrize('ends, shown', [([4], False), ([2, 4], True)])
def test_ends_of_mini_generations_are_explained_where_there_are_any(ends, shown, table5, tmp_path):
    leave_config(log(tmp_path / 'run', '20260101_000000', 1, 4), ends)
    path = write_report(table5, tmp_path / 'report.html', curves={'BL': tmp_path / 'run'})
    assert ('vertical line is the end of a mini-generation' in path.read_text()) == shown


def test_report_of_probes_alone_does_not_speak_of_fine_tuning(tmp_path):
    results = [result(name, 'probe', 0, {'mAP_linear': 0.5}, {}) for name in ('BL', 'SD')]
    costs = [dict(name='BL', task='probe', runs=1, seconds=1.0, gpu_hours=0.0, memory_mib=None)]
    table5 = build_table5(results, data='real', stages=[])
    text = write_report(table5, tmp_path / 'report.html', costs=costs).read_text()
    assert 'BL, SD, tried on the same tasks' in text and 'ine-tun' not in text


def test_report_has_no_papers_row_beside_another_setting_on_real_data(tmp_path):
    results = [result('BL', 'seg', 0, {'mIoU': 0.5}, {})]
    text = write_report(build_table5(results, data='real', stages=[]), tmp_path / 'real.html').read_text()
    assert '77.53' not in text
    text = write_report(build_table5(results, data='demo', stages=[]), tmp_path / 'demo.html').read_text()
    assert '77.53' in text


def test_report_refuses_a_table_that_is_none(table5, tmp_path):
    broken = json.loads(json.dumps(table5))
    broken['backbones'][0]['det']['values'] = [30.0, 32.0]
    with pytest.raises(InputError, match=r'backbones\[0\]\.det\.values'):
        write_report(broken, tmp_path / 'report.html')
    assert not (tmp_path / 'report.html').exists()


def test_large_photos_are_compressed_until_the_page_is_small(table5, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    samples = [
        Sample(str(k), tuple(Panel('BL', Image.fromarray(noise), 'BL: noise') for _ in range(4)))
        for k in range(8)
    ]
    path = write_report(table5, tmp_path / 'report.html', samples={'seg': samples})
    assert path.stat().st_size < 5e6
    assert len(Page(path.read_text()).all('img')) == 32


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min 00 s'), (185, '3 min 05 s'), (7260, '2 h 01 min')],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_images_are_chosen_over_the_whole_list_by_the_truth():
    objects = {'a': 1, 'b': 2, 'c': 3, 'd': 0, 'e': 1, 'f': 1}
    assert choose(list(objects), objects.__getitem__, 2) == ['b', 'd']
    assert choose(list(objects), objects.__getitem__, 9) == list(objects)
