"""Tables in the paper's form: its own numbers, several seeds, differences with their uncertainty."""

import pytest

from sd_pretrain.cli import COMPILE
from sd_pretrain.paper_table import NONE, build_table, markdown, settings_note
from sd_pretrain.table3 import LAYOUT as TABLE3
from sd_pretrain.table4 import LAYOUT as TABLE4


def run(*top1, best=None, fused=None):
    """What is said of a run whose snapshots have these errors."""
    return {
        'generations': len(top1),
        'snapshots': [{'top1': value, 'top5': value / 4} for value in top1],
        'best': {'top1': best or min(top1), 'epoch': 1},
        'ensemble': fused and {'top1': fused, 'top5': fused / 4},
        'ensemble_of_logits': None,
        'seconds': 1.0,
    }


def cells(text):
    return [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if '|' in line
    ]


def test_table_3_has_the_papers_rows_and_numbers():
    table = build_table(TABLE3, {}, data='cifar100', nets=list(TABLE3.nets))
    assert table['paper'].endswith('Section 4.1, Table 3')
    head, _, *rows = cells(markdown(TABLE3, table))
    columns = ['M_#L1', 'M_#L2', 'M_#L3', 'M_#L4', 'best', 'ensemble', 'vs. BL']
    assert head == ['Backbone', 'Alg.', 'T', *columns]
    assert len(rows) == 24
    assert rows[0] == ['ResNet20', 'BL', 'N/A', NONE, NONE, NONE, '— (33.57)', '— (33.57)', NONE, NONE]
    sd = ['— (18.98)', '— (17.48)', '— (16.32)', '— (18.02)', '— (16.06)', '— (15.72)', NONE]
    assert rows[22] == ['DenseNet190', 'SD', '2', *sd]


@pytest.mark.parametrize('layout', [TABLE3, TABLE4])
def test_the_papers_first_snapshots_are_shared_and_each_row_is_complete(layout):
    """Where both tables could be mistyped: SE and SD have one first snapshot, the best is the lowest."""
    for net in layout.nets:
        rows = layout.paper[net]
        shared = {tuple(rows[a.key])[: 1 if layout.number == 3 else 2] for a in layout.algorithms[1:]}
        assert len(shared) == 1
        for row in rows.values():
            assert len(row) == len(layout.columns)
            if layout.number == 3:
                assert row[4] <= min(value for value in row[:4] if value is not None)


def test_table_4_has_the_papers_numbers_and_those_of_the_text():
    head, _, *rows = cells(markdown(TABLE4, build_table(TABLE4, {}, data='demo', nets=list(TABLE4.nets))))
    assert head[3:] == [
        'M_#L1 top-1', 'M_#L1 top-5', 'M_#L2 top-1', 'M_#L2 top-5', 'fused top-1', 'fused top-5', 'vs. BL',
    ]  # fmt: skip
    assert [row[7] for row in rows] == [NONE, '— (21.66)', NONE, NONE, '— (21.19)', NONE]
    assert rows[5][3:7] == ['— (22.56)', '— (6.44)', '— (20.93)', '— (5.55)']


def test_one_seed_gives_no_uncertainty():
    found = {
        ('resnet20', 'bl'): {0: run(34.0)},
        ('resnet20', 'se'): {0: run(36.5, 33, 32.5, 32.25, fused=30)},
    }
    table = build_table(TABLE3, found, data='cifar100')
    assert [row['net'] for row in table['rows']] == ['resnet20'] * 4
    text = markdown(TABLE3, table)
    _, _, bl, se, *sd = cells(text)
    assert bl[3:] == [NONE, NONE, NONE, '34.00 (33.57)', '34.00 (33.57)', NONE, NONE]
    assert se[6:] == ['32.25 (32.66)', '32.25 (32.54)', '30.00 (30.86)', '-1.75 ± ?']
    assert [row[-1] for row in sd] == [NONE, NONE]
    assert 'one seed' in text


def test_several_seeds_give_mean_deviation_and_paired_differences():
    """BL 34, 36: 35 ± 1.41. SE 33, 34 and one more, 38, that BL lacks; differences -1, -2: -1.5 ± 0.5."""
    se = {seed: run(40, 40, 40, last, fused=30) for seed, last in ((0, 33), (1, 34), (5, 38))}
    found = {('resnet20', 'bl'): {0: run(34.0), 1: run(36.0)}, ('resnet20', 'se'): se}
    table = build_table(TABLE3, found, data='cifar100')
    _, _, bl, row, *_ = cells(markdown(TABLE3, table))
    assert bl[6] == '35.00 ± 1.41 (33.57)'
    assert row[6] == '35.00 ± 2.65 (32.66)'
    assert row[-1] == '-1.50 ± 0.50'
    entry = table['rows'][1]
    assert entry['values']['L4']['seeds'] == {'0': 33, '1': 34, '5': 38}
    assert entry['minus_bl'] == {'mean': -1.5, 'standard_error': pytest.approx(0.5), 'seeds': 2}
    assert entry['runs']['5']['snapshots'][3]['top1'] == 38


def test_settings_are_named_where_there_are_any():
    assert settings_note((COMPILE,), amp=False) == []
    said = settings_note(('total_batch_size=512', COMPILE), amp=True)
    assert said == ['Settings of ours: bfloat16 mixed precision; total_batch_size=512.']
