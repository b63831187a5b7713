"""Table 5: whose work dir it is, and what each stage took over all starts."""

import json
from dataclasses import replace

import pytest

from sd_pretrain.cli import InputError
from transfer.table5 import Table5, _claim_work_dir, _Stages, run_table5


def test_a_work_dir_is_for_one_run(tmp_path):
    what = Table5(work_dir=tmp_path / 'w')
    world = tmp_path / 'world.json'
    world.write_text('{"seed": 0}')
    for _ in range(2):
        _claim_work_dir(what, tmp_path)
    with pytest.raises(InputError, match='holds another run: data was demo, is now real'):
        _claim_work_dir(replace(what, data_root=tmp_path), tmp_path)
    world.write_text('{"seed": 1}')
    with pytest.raises(InputError, match='world was .*0.*, is now .*1'):
        _claim_work_dir(what, tmp_path)


def test_stage_times_add_up_over_starts_but_for_what_is_done_anew(tmp_path):
    path = tmp_path / 'stages.json'
    path.write_text('{"det": 1000.0, "samples": 1000.0}')
    stages = _Stages(path)
    with pytest.raises(RuntimeError), stages('det'):
        raise RuntimeError
    with stages('samples', anew=True):
        pass
    found = json.loads(path.read_text())
    assert found['det'] > 1000 > found['samples']
    path.write_text('{"det"')
    with pytest.raises(InputError, match=r'stages\.json does not parse'):
        _Stages(path)


def test_gpus_that_do_not_divide_a_batch_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 16)
    with pytest.raises(InputError, match='total batch of 8 cannot be divided over 16'):
        run_table5(Table5(work_dir=tmp_path / 'w', data_root=tmp_path, gpus=16))
    assert not (tmp_path / 'w').exists()


def test_several_pretrainings_decide_the_seeds(tmp_path, run_tool, capsys):
    assert run_tool('table5.py', '--pretrainings', '0', '--work-dir', tmp_path / 'w') == 2
    assert '--pretrainings 0: at least one' in capsys.readouterr().err
    with pytest.raises(InputError, match='several pretrainings have the seeds .*: leave --seeds out'):
        run_table5(Table5(work_dir=tmp_path / 'w', pretrainings=3, seeds=(0, 1)))
    assert not (tmp_path / 'w').exists()
    (first, second) = Table5(data_root=tmp_path, arch='r50', pretrainings=2).pretrain_dirs('SD')
    assert (first.name, second.name) == ('sd_r50_imagenet', 'sd_r50_imagenet_seed1')


@pytest.mark.parametrize(('seed', 'pretraining', 'taken'), [(0, None, False), (1, 2, False), (1, None, True)])
def test_seeds_of_one_pretraining_are_refused_before_others_are_pretrained(
    seed, pretraining, taken, tmp_path, monkeypatch
):
    folder = tmp_path / f'transfer/det_voc07/SD/seed{seed}'
    folder.mkdir(parents=True)
    (folder / 'run.json').write_text(json.dumps({'seed': seed, 'pretraining': pretraining}))
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    what = Table5(work_dir=tmp_path, data_root=tmp_path / 'nowhere', pretrainings=2, seeds=(0, 1))
    message = r'seed1 is a fine-tuning of the first pretraining .* --work-dir' if taken else 'does not exist'
    with pytest.raises(InputError, match=message):
        run_table5(what)
