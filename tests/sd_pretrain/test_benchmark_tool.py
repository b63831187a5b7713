import json

import pytest

from sd_pretrain.benchmark import Section, interleaved, ratio, spread


def test_a_part_prints_its_table_and_keeps_it(run_tool, tmp_path, capsys):
    assert (
        run_tool('benchmark.py', 'loop', '--quick', '--rounds', 1, '--device', 'cpu', '--out', tmp_path) == 0
    )
    printed = capsys.readouterr().out
    assert '### Hooks and logging' in printed
    page = (tmp_path / 'loop.md').read_text()
    assert page.strip() in printed
    found = json.loads((tmp_path / 'loop.json').read_text())
    assert found['machine']['cores'] >= 1
    assert len(found['rows']) == 3


@pytest.mark.parametrize('part', ['data', 'loop', 'train', 'eval', 'all'])
def test_every_part_knows_its_arguments(run_tool, part, capsys):
    assert run_tool('benchmark.py', part, '--help') == 0
    assert '--quick' in capsys.readouterr().out


def test_no_rounds_are_refused(run_tool, capsys):
    assert run_tool('benchmark.py', 'all', '--rounds', 0) == 2
    assert '--rounds must be at least 1, found 0' in capsys.readouterr().err


def test_cases_take_turns_and_begin_in_turn():
    seen = []
    cases = {name: lambda name=name: seen.append(name) for name in 'abc'}
    seconds = interleaved(cases, rounds=2, warmup=0)
    assert ''.join(seen) == 'abcbca'
    assert {name: len(values) for name, values in seconds.items()} == {'a': 2, 'b': 2, 'c': 2}


def test_ratios_are_taken_within_rounds():
    # The second round is a slow one for both.
    assert ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 2.5)
    assert spread([1, 2, 3, 4, 5]).show(0) == '3 [2, 4]'


def test_a_table_is_markdown():
    section = Section('name', 'Title', ('case', 's'), [('a', '1')], ['A note.'])
    assert section.markdown() == '### Title\n\n| case | s |\n| :-- | --: |\n| a | 1 |\n\nA note.'
