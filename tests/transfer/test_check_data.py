import shutil
from pathlib import Path

import pytest
from PIL import Image

from sd_pretrain.cli import InputError
from transfer.check_data import check_detection, check_segmentation
from transfer.voc import palette

VOC07, VOC12 = 'VOCdevkit/VOC2007', 'VOCdevkit/VOC2012'


def test_whole_tree_is_accepted_and_counted(tiny_voc):
    assert check_detection(tiny_voc / VOC07) == {'trainval': 4, 'test': 2}
    assert check_segmentation(tiny_voc / VOC12) == {'train': 2, 'aug': 2, 'val': 2}


def test_voc12_is_checked_for_detection_too(tiny_voc):
    with pytest.raises(InputError, match=r'VOC2012 has no folder Annotations; get VOCtrainval_11-May-2012'):
        check_detection(tiny_voc / VOC12)
    for folder in ('Annotations', MAIN):
        shutil.copytree(tiny_voc / VOC07 / folder, tiny_voc / VOC12 / folder)
    assert check_detection(tiny_voc / VOC12) == {'trainval': 4}
    assert check_detection(tiny_voc / VOC07) == {'trainval': 4, 'test': 2}
    with pytest.raises(InputError, match='names 4 images where the full set has 11,540'):
        check_detection(tiny_voc / VOC12, full_size=True)
    (tiny_voc / VOC12 / XML).unlink()
    with pytest.raises(InputError, match=r'VOC2012/Annotations lacks 1 files .*000002\.xml.*11-May-2012'):
        check_detection(tiny_voc / VOC12, lists=('trainval',))


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _repaint(path: Path, mode: str, size: tuple[int, int] = (64, 48), value: int = 0) -> None:
    Image.new(mode, size, value).save(path)


XML, JPG = 'Annotations/000002.xml', 'JPEGImages/000002.jpg'
MAIN = 'ImageSets/Main'
VOC07_FAULTS = {
    'no XML': (lambda v: _truncate(v / XML), ('000002.xml', 'is no XML', 'unpack it again')),
    'other root element': (lambda v: (v / XML).write_text('<a/>'), ('000002.xml', '<a> where <annotation>')),
    'size of another image': (
        lambda v: _replace(v / XML, '<width>64', '<width>80'),
        ('000002.xml', '80x48', '64x48', 'do not belong together'),
    ),
    'box outside': (
        lambda v: _replace(v / XML, '</xmax>', '0</xmax>'),
        ('000002.xml', 'box 1', 'does not fit', '64x48'),
    ),
    'box upside down': (
        lambda v: _replace(v / XML, '<ymax>', '<ymax>-'),
        ('000002.xml', 'box 1', 'does not fit'),
    ),
    'coordinate no number': (
        lambda v: _replace(v / XML, '<xmin>', '<xmin>x'),
        ('000002.xml', 'object 1: <xmin>', 'a number is expected'),
    ),
    'object without box': (
        lambda v: _replace(v / XML, 'bndbox>', 'box>') or _replace(v / XML, '/bndbox>', '/box>'),
        ('000002.xml', 'object 1 has no <bndbox>'),
    ),
    'unknown class': (
        lambda v: _replace(v / XML, '<name>bird', '<name>brid'),
        ('000002.xml', 'object 1', "'brid'", 'none of the 20'),
    ),
    'image empty': (lambda v: (v / JPG).write_bytes(b''), ('000002.jpg is empty', 'unpack it again')),
    'image no image': (lambda v: (v / JPG).write_bytes(b'text'), ('000002.jpg is not a readable image',)),
    'image missing': (
        lambda v: (v / JPG).unlink(),
        ('JPEGImages lacks 1 files', '000002.jpg', 'VOCtrainval_06'),
    ),
    'XML missing': (lambda v: (v / XML).unlink(), ('Annotations lacks 1 files', '000002.xml')),
    'list missing': (lambda v: (v / MAIN / 'test.txt').unlink(), ('test.txt does not exist', 'trainval.txt')),
    'list empty': (lambda v: (v / MAIN / 'test.txt').write_text('\n'), ('test.txt is empty',)),
    'lists overlap': (
        lambda v: (v / MAIN / 'test.txt').write_text('000001\n000005\n'),
        ('test.txt shares 1 images with trainval.txt', '000001'),
    ),
    'listed twice': (
        lambda v: (v / MAIN / 'test.txt').write_text('000005\n000005\n'),
        ('test.txt names 1 images more than once',),
    ),
    'folder missing': (lambda v: (v / 'Annotations').rename(v / 'annotations'), ('no folder Annotations',)),
}


@pytest.mark.parametrize('fault', VOC07_FAULTS)
def test_voc07_fault_is_named_with_file_and_remedy(tiny_voc, fault):
    damage, said = VOC07_FAULTS[fault]
    damage(tiny_voc / VOC07)
    with pytest.raises(InputError) as caught:
        check_detection(tiny_voc / VOC07)
    for part in (str(tiny_voc / VOC07), *said):
        assert part in str(caught.value)


VAL_MASK, AUG_MASK = 'SegmentationClass/000005.png', 'SegmentationClassAug/000003.png'
VOC12_FAULTS = {
    'mask truncated': (lambda v: _truncate(v / VAL_MASK), (VAL_MASK, 'is not a readable image')),
    'mask empty': (lambda v: (v / AUG_MASK).write_bytes(b''), (f'{AUG_MASK} is empty',)),
    'mask of another size': (lambda v: _repaint(v / VAL_MASK, 'L', (48, 64)), (VAL_MASK, '48x64', '64x48')),
    'value that is no class': (
        lambda v: _repaint(v / AUG_MASK, 'L', value=21),
        (AUG_MASK, 'values 21', '0 to 20'),
    ),
    'mask in colours': (lambda v: _repaint(v / VAL_MASK, 'RGB'), (VAL_MASK, 'mode RGB')),
    'mask missing': (
        lambda v: (v / AUG_MASK).unlink(),
        ('SegmentationClassAug lacks 1', '000003.png', 'SBD'),
    ),
    'no augmented list': (
        lambda v: (v / 'ImageSets/Segmentation/aug.txt').unlink(),
        ('aug.txt does not exist', 'SBD'),
    ),
}


@pytest.mark.parametrize('fault', VOC12_FAULTS)
def test_voc12_fault_is_named_with_file_and_remedy(tiny_voc, fault):
    damage, said = VOC12_FAULTS[fault]
    damage(tiny_voc / VOC12)
    with pytest.raises(InputError) as caught:
        check_segmentation(tiny_voc / VOC12)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize('check', [check_detection, check_segmentation])
def test_missing_and_empty_roots_say_where_to_get_the_data(check, tmp_path):
    with pytest.raises(InputError, match=r'nowhere does not exist; get VOCtrainval_.*--data-root'):
        check(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='is empty; get VOCtrainval_'):
        check(tmp_path)


def test_edges_of_the_image_belong_to_it(tiny_voc):
    xml = tiny_voc / VOC07 / XML
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>64</xmax><ymax>48</ymax></bndbox>'
    xml.write_text(f'<annotation><object><name>dog</name>{box}</object></annotation>')
    assert check_detection(tiny_voc / VOC07)['trainval'] == 4
    _replace(xml, '<xmax>64', '<xmax>65')
    with pytest.raises(InputError, match='1, 1, 65, 48'):
        check_detection(tiny_voc / VOC07)


def test_full_size_names_the_official_counts(tiny_voc):
    with pytest.raises(
        InputError, match=r'trainval\.txt names 4 images where the full set has 5,011'
    ) as caught:
        check_detection(tiny_voc / VOC07, full_size=True)
    assert 'full set has 4,952' in str(caught.value)
    with pytest.raises(InputError, match='full set has 1,464') as caught:
        check_segmentation(tiny_voc / VOC12, full_size=True)
    assert 'full set has 9,118; get the SBD masks' in str(caught.value)
    assert 'full set has 1,449; get VOCtrainval_11-May-2012.tar' in str(caught.value)


def test_many_problems_are_cut_short_and_counted(tiny_voc):
    for xml in (tiny_voc / VOC07 / 'Annotations').iterdir():
        xml.write_text('')
    with pytest.raises(InputError, match=r'and 3 more like these$') as caught:
        check_detection(tiny_voc / VOC07)
    assert str(caught.value).count('is no XML') == 3


def test_tool_lists_the_problems_of_all_sets_and_exits_with_2(run_tool, tiny_voc, capsys):
    arguments = ['check_data.py', 'voc07', 'voc12', '--data-root', tiny_voc]
    assert run_tool(*arguments) == 0
    said = capsys.readouterr()
    assert said.out.count(' OK ') == 2 and said.err == ''

    (tiny_voc / VOC07 / XML).unlink()
    (tiny_voc / VOC12 / VAL_MASK).unlink()
    assert run_tool(*arguments) == 2
    said = capsys.readouterr()
    assert '000002.xml' in said.out
    assert '000005.png' in said.out
    assert said.err.startswith('error: 2 of 2 data sets')


def test_tool_refuses_an_unknown_set(run_tool, capsys):
    assert run_tool('check_data.py', 'voc99') == 2
    known = 'imagenet, voc07, voc12, voc12det, cifar100'
    assert capsys.readouterr().err == f"error: unknown data set 'voc99'; there are {known}\n"


def test_tool_checks_cifar100_where_it_is_asked_to(run_tool, tmp_path, capsys):
    assert run_tool('check_data.py', 'cifar100', '--data-root', tmp_path) == 2
    assert f'no data root {tmp_path / "cifar-100-python"}' in capsys.readouterr().out


def test_real_photos_pass(real_data):
    assert check_detection(real_data / VOC07, lists=('train', 'val')) == {'train': 500, 'val': 300}
    assert check_segmentation(real_data / VOC12, lists=('train', 'val')) == {'train': 240, 'val': 140}


def test_palette_is_that_of_the_official_masks(real_data):
    mask = Image.open(next((real_data / VOC12 / 'SegmentationClass').iterdir()))
    official = mask.getpalette()
    for index in (*range(21), 255):
        assert tuple(official[3 * index : 3 * index + 3]) == palette()[index]
