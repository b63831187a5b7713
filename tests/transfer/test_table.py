import json
from pathlib import Path

import pytest

from sd_pretrain.cli import InputError
from transfer.results import collect
from transfer.run_record import config_sha256, load_config
from transfer.table import Row, format_table, papers_setting, rows
from transfer.table5_json import build_table5, load_table5, table5_markdown, validate_table5

REPO = Path(__file__).parents[2]
CONFIGS = {
    'det': 'faster-rcnn_r152-c4_8xb2_voc07.py',
    'seg': 'deeplabv3_r152-d16-syncbn_8xb1_voc12aug.py',
}
IMAGES = {'det': [5011, 4952], 'seg': [1464, 9118, 1449]}


def result(name, task, seed, **metrics):
    return {
        'schema': 1,
        'name': name,
        'task': task,
        'seed': seed,
        'config': f'configs/{task}/{CONFIGS[task]}',
        'config_sha256': config_sha256(load_config(REPO / 'configs' / task / CONFIGS[task])),
        'images': IMAGES[task],
        'arch': 'resnet152',
        'backbone': f'{name}.pth',
        'sha256': 64 * name[0],
        'metrics': metrics,
        'per_class': {'dog': metrics.get('mIoU', 0.25), 'cat': 0.5},
    }


TWO_SEEDS = [
    result('BL', 'det', 0, mAP_11point=0.50, mAP_area=0.48),
    result('BL', 'det', 1, mAP_11point=0.52, mAP_area=0.48),
    result('SD', 'det', 0, mAP_11point=0.54, mAP_area=0.50),
    result('SD', 'det', 1, mAP_11point=0.58, mAP_area=0.50),
    result('BL', 'seg', 0, mIoU=0.70),
    result('SD', 'seg', 0, mIoU=0.7044),
]
STAGES = [{'name': 'pretrain', 'seconds': 12.0}, {'name': 'det', 'seconds': 30.5}]


def line(text, start):
    """The one line that begins with ``start``, its spaces collapsed."""
    (found,) = [one for one in text.splitlines() if one.startswith(start)]
    return ' '.join(found.split())


def test_mean_deviation_and_difference():
    baseline, row = rows(TWO_SEEDS)
    assert row.mean('mAP_11point') == pytest.approx(0.56)
    # Deviations of 0.54 and 0.58 from their mean: -0.02 and 0.02, so s^2 = 0.0008 (n - 1 = 1).
    assert row.sd('mAP_11point') == pytest.approx(0.0008**0.5)
    difference = row.minus(baseline, 'mAP_11point')
    assert difference.value == pytest.approx(0.05)
    # s^2 of the baseline is 0.0002: sqrt(0.0008 / 2 + 0.0002 / 2) = sqrt(0.0005).
    assert difference.error == pytest.approx(0.0005**0.5)


def test_metrics_of_two_data_sets_do_not_take_each_others_place():
    other = result('BL', 'det', 0, mAP_11point=0.9) | {'dataset': 'coco', 'config': 'configs/det/coco.py'}
    voc = [one | {'dataset': 'voc07'} for one in TWO_SEEDS]
    with pytest.raises(InputError, match='two runs of BL have mAP_11point of seed 0'):
        rows([*voc, other])


def test_runs_on_other_image_lists_are_not_compared():
    lists = {'BL': 64 * 'a', 'SD': 64 * 'b'}
    runs = [one | {'dataset': 'voc07', 'lists_sha256': lists[one['name']]} for one in TWO_SEEDS[:4]]
    with pytest.raises(InputError, match="results of 'det voc07' come from two image lists"):
        rows(runs)


def test_random_weights_and_a_checkpoint_of_one_name_are_two_backbones():
    mixed = [one | {'sha256': 64 * 'a' if one['seed'] else None} for one in TWO_SEEDS]
    with pytest.raises(InputError, match="results of 'BL' come from two backbones: none and aaa"):
        rows(mixed)
    assert rows([one | {'sha256': None} for one in TWO_SEEDS])


def test_one_run_has_no_uncertainty():
    baseline, row = rows(TWO_SEEDS)
    assert row.sd('mIoU') is None
    assert row.minus(baseline, 'mIoU').error is None
    assert Row('none', {}).minus(baseline, 'mIoU') is None


def test_baseline_comes_first():
    assert [row.name for row in rows(TWO_SEEDS)] == ['BL', 'SD']
    assert [row.name for row in rows(TWO_SEEDS, 'SD')] == ['SD', 'BL']
    with pytest.raises(InputError, match="no results of the baseline 'X'; there are BL, SD"):
        rows(TWO_SEEDS, 'X')
    with pytest.raises(InputError, match='no finished fine-tuning'):
        rows([])


def test_terminal_table_shows_percent_difference_and_uncertainty():
    text = format_table(TWO_SEEDS, paper=False, pretrain={'SD': {'top1': 0.7907}})
    assert line(text.split('\n\n')[0], 'BL') == 'BL - 51.00 ± 1.41 48.00 ± 0.00 70.00'
    expected = 'SD 79.07 56.00 ± 2.83 +5.00 ± 2.24 50.00 ± 0.00 +2.00 ± - 70.44 +0.44 ± ?'
    assert line(text.split('\n\n')[0], 'SD') == expected
    assert 'paper' not in text


def test_equal_runs_are_not_called_certain():
    text = format_table(TWO_SEEDS[:4], paper=False)
    assert '± -: the same in every run; what is left to chance are the test images' in text
    assert '± -:' not in format_table(TWO_SEEDS[4:], paper=False)


def test_each_run_is_shown():
    each = format_table(TWO_SEEDS).split('\n\n')[1].splitlines()
    assert ' '.join(each[0].split()) == 'each run (%) metric seed 0 seed 1'
    assert [' '.join(one.split()) for one in each if one.startswith('SD')] == [
        'SD mAP 11-point 54.00 58.00',
        'SD mAP area 50.00 50.00',
        'SD mIoU 70.44 -',
    ]


def test_single_runs_say_that_the_uncertainty_is_unknown():
    text = format_table([one for one in TWO_SEEDS if one['seed'] == 0], paper=False)
    assert line(text, 'SD') == 'SD 54.00 +4.00 ± ? 50.00 +2.00 ± ? 70.44 +0.44 ± ?'
    assert '± ?: one run each: how much runs scatter is not known' in text
    assert 'each run (%)' not in text


def test_notes_explain_only_what_a_table_shows():
    assert '± ?' not in format_table([one for one in TWO_SEEDS if one['name'] == 'SD'], paper=False)


def test_notes_in_markdown_are_a_list():
    *_, notes = format_table(TWO_SEEDS, fmt='markdown').split('\n\n')
    assert len(notes.splitlines()) == 5
    assert all(one.startswith('- ') for one in notes.splitlines())
    assert notes in table5_markdown(build_table5(TWO_SEEDS, data='real', stages=STAGES))


def test_paper_stands_beside_its_own_setting_only():
    assert papers_setting(TWO_SEEDS)
    demo = [{**one, 'config': f'configs/demo/{one["task"]}.py'} for one in TWO_SEEDS]
    small = [{**one, 'arch': 'resnet18'} for one in TWO_SEEDS]
    changed = [{**one, 'config_sha256': 64 * '0'} for one in TWO_SEEDS]
    assert not papers_setting(demo)
    assert not papers_setting(small)
    assert not papers_setting(changed)
    fewer = [{**one, 'images': [500, 300]} for one in TWO_SEEDS]
    assert not papers_setting(fewer)
    fpn = [{**one, 'config': 'configs/det/faster-rcnn_r152-fpn_8xb2_voc07.py'} for one in TWO_SEEDS]
    assert not papers_setting(fpn)
    text = format_table(TWO_SEEDS)
    assert line(text, 'paper: BL') == 'paper: BL 73.49 - 77.53'
    assert line(text, 'paper: SD') == 'paper: SD 74.93 +1.44 ± ? - - 77.97 +0.44 ± ?'
    assert 'paper: SD' not in format_table(demo)


def test_markdown_has_one_cell_for_each_column_and_escapes_pipes():
    odd = [{**one, 'name': one['name'].replace('SD', 'S|D')} for one in TWO_SEEDS]
    table = format_table(odd, fmt='markdown', paper=False).split('\n\n')[0].splitlines()
    assert (
        table[0] == '| backbone (%) | mAP 11-point | difference | mAP area | difference | mIoU | difference |'
    )
    assert table[1] == '| :-- | --: | --: | --: | --: | --: | --: |'
    assert table[3].startswith('| S\\|D | 56.00 ± 2.83 | +5.00 ± 2.24 |')


def test_one_recipe_for_two_depths_is_one_recipe():
    r50 = {**TWO_SEEDS[2], 'config': 'configs/det/faster-rcnn_r50-c4_8xb2_voc07.py', 'config_sha256': 'other'}
    assert [row.name for row in rows([TWO_SEEDS[0], r50])] == ['BL', 'SD']
    fpn = {**r50, 'config': 'configs/det/faster-rcnn_r50-fpn_8xb2_voc07.py'}
    with pytest.raises(InputError, match='two configs'):
        rows([TWO_SEEDS[0], fpn])


@pytest.mark.parametrize(
    ('key', 'said'),
    [('sha256', 'two backbones'), ('config', 'two configs'), ('config_sha256', 'two settings')],
)
def test_runs_that_do_not_belong_together_are_not_averaged(key, said):
    mixed = [TWO_SEEDS[0], {**TWO_SEEDS[1], key: 'other'}]
    with pytest.raises(InputError, match=f'{said}.*other'):
        rows(mixed)


def test_one_task_on_two_datasets_is_two_experiments():
    more = [
        {
            **one,
            'dataset': 'voc0712',
            'config': 'configs/det/faster-rcnn_r152-c4_8xb2_voc0712.py',
            'config_sha256': 64 * 'm',
            'metrics': {f'{metric}_voc0712': value + 0.1 for metric, value in one['metrics'].items()},
        }
        for one in TWO_SEEDS
        if one['task'] == 'det'
    ]
    text = format_table([*TWO_SEEDS, *more])
    head, _, *_ = text.splitlines()
    assert 'mAP 11-point' in head and '07+12 mAP area' in head
    assert line(text.split('\n\n')[0], 'BL').split() == (
        'BL 51.00 ± 1.41 48.00 ± 0.00 61.00 ± 1.41 58.00 ± 0.00 70.00'.split()
    )
    assert line(text, 'paper: BL') == 'paper: BL 73.49 - - - 77.53', 'the paper has no 07+12'
    with pytest.raises(InputError, match="results of 'det voc0712' come from two configs"):
        rows([*more[:3], {**more[3], 'config': 'configs/det/faster-rcnn_r152-fpn_8xb2_voc0712.py'}])


def test_collect_reads_every_finished_run(tmp_path):
    for one in TWO_SEEDS:
        folder = {'det': 'det_voc07', 'seg': 'seg_voc12'}[one['task']]
        path = tmp_path / folder / one['name'] / f'seed{one["seed"]}' / 'result.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(one))
    (tmp_path / 'det_voc07' / 'SD' / 'seed2').mkdir()
    found = collect(tmp_path)
    folders = [Path(one.pop('work_dir')) for one in found]
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, TWO_SEEDS))
    assert all((folder / 'result.json').is_file() for folder in folders)
    assert next(one['name'] for one in collect(tmp_path, first=['SD', 'BL'])) == 'SD'

    path.write_text('{')
    with pytest.raises(InputError, match=r'SD/seed0/result.json does not parse'):
        collect(tmp_path)
    path.write_text('{"name": "SD", "task": "seg"}')
    with pytest.raises(InputError, match=r'result.json lacks metrics, seed'):
        collect(tmp_path)
    with pytest.raises(InputError, match='no work dir'):
        collect(tmp_path / 'nowhere')


def test_table5_holds_unrounded_fractions(tmp_path):
    third = [result('BL', 'seg', 0, mIoU=1 / 3), result('BL', 'seg', 1, mIoU=2 / 3)]
    table5 = build_table5(third, data='demo', stages=STAGES, pretrain={'BL': {'top1': 0.1, 'seconds': 3}})
    assert table5['backbones'] == [
        {
            'name': 'BL',
            'arch': 'resnet152',
            'checkpoint': 'BL.pth',
            'sha256': 64 * 'B',
            'pretrain': {'top1': 0.1, 'top5': None, 'seconds': 3},
            'seg': {
                'metric': 'mIoU',
                'seeds': [0, 1],
                'values': [1 / 3, 2 / 3],
                'mean': 0.5,
                'per_class': {'dog': 0.5, 'cat': 0.5},
            },
        }
    ]
    assert table5['seconds'] == 42.5
    path = tmp_path / 'table5.json'
    path.write_text(json.dumps(table5))
    assert load_table5(path) == table5


def test_table5_markdown_equals_the_table_of_its_results():
    table5 = build_table5(TWO_SEEDS, data='real', stages=STAGES)
    text = table5_markdown(table5)
    assert format_table(TWO_SEEDS, fmt='markdown').split('\n\n')[0] in text
    assert 'paper: SD' in text
    assert '| det | 30 |' in text
    demo = table5_markdown(build_table5(TWO_SEEDS, data='demo', stages=STAGES))
    assert demo.startswith('# Table 5 on the embedded demo data\n')
    assert 'paper: SD' not in demo


FAULTS = {
    'schema': lambda t: t.update(schema=2),
    'data': lambda t: t.update(data='toy'),
    'backbones must be at least': lambda t: t.update(backbones=[]),
    r'backbones\[0\].name': lambda t: t['backbones'][0].pop('name'),
    r'backbones\[1\].det.values': lambda t: t['backbones'][1]['det'].update(values=[55.0]),
    r'backbones\[1\].det.mean': lambda t: t['backbones'][1]['det'].update(mean=0.1),
    r'backbones\[0\].seg.metric': lambda t: t['backbones'][0]['seg'].update(metric='mAP'),
    r'backbones\[0\].pretrain.top1': lambda t: t['backbones'][0].update(pretrain={'top1': 78.83}),
    r'stages\[1\].seconds': lambda t: t['stages'][1].update(seconds='long'),
}


@pytest.mark.parametrize('where', FAULTS)
def test_table5_fault_is_named(where):
    table5 = json.loads(json.dumps(build_table5(TWO_SEEDS, data='real', stages=STAGES)))
    FAULTS[where](table5)
    with pytest.raises(InputError, match=where):
        validate_table5(table5)


def test_missing_or_broken_table5_file(tmp_path):
    with pytest.raises(InputError, match='no file'):
        load_table5(tmp_path / 'table5.json')
    (tmp_path / 'table5.json').write_text('[')
    with pytest.raises(InputError, match='does not parse'):
        load_table5(tmp_path / 'table5.json')
