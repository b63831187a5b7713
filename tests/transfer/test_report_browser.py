"""The report in a real browser, on desktop and phone: no error, no request, nothing too wide or cut off."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfer.confusion import NOTHING
from transfer.draw import Detection, draw_boxes
from transfer.provenance import collect_provenance
from transfer.report import write_report
from transfer.samples import Panel, Sample
from transfer.table5_json import build_table5
from transfer.transfer_report import Confusion
from transfer.voc import CLASSES

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
# Written into the page as text, for --dump-dom to show.
CHECK = """
<script>
const errors = [];
addEventListener('error', event => errors.push(String(event.message)));
addEventListener('load', () => {
  const wide = document.documentElement.scrollWidth;
  const found = {errors, width: innerWidth, wide, requests: [], cut: [], overlaps: [], small: [], hiding: []};
  for (const one of document.querySelectorAll('[src], link[href]'))
    if (!(one.src || one.href).startsWith('data:')) found.requests.push(one.src || one.href);
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter(one => one.textContent.trim());
    const boxes = texts.map(one => one.getBoundingClientRect());
    const scale = frame.width / svg.viewBox.baseVal.width;
    for (const one of texts)
      if (parseFloat(getComputedStyle(one).fontSize) * scale < 9) found.small.push(one.textContent.trim());
    boxes.forEach((box, index) => {
      const name = texts[index].textContent.trim();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        found.cut.push(name);
      for (let other = 0; other < index; other++) {
        const across = Math.min(box.right, boxes[other].right) - Math.max(box.left, boxes[other].left);
        const down = Math.min(box.bottom, boxes[other].bottom) - Math.max(box.top, boxes[other].top);
        if (across > 1 && down > Math.min(box.height, boxes[other].height) / 3)
          found.overlaps.push(name + ' / ' + texts[other].textContent.trim());
      }
    });
  }
  for (const region of document.querySelectorAll('.scroll'))
    if (region.scrollWidth > region.clientWidth)
      for (const one of region.querySelectorAll('th[scope=row]'))
        if (one.offsetWidth > region.clientWidth / 2) found.hiding.push(one.textContent);
  const hidden = document.createElement('pre');
  hidden.id = 'found';
  hidden.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(hidden);
});
</script>
"""


@pytest.fixture(scope='module')
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    # Installing is for machines that are there for tests.
    if path is None and os.environ.get('SD_TEST_APT') and shutil.which('apt-get') and os.geteuid() == 0:
        subprocess.run(['apt-get', 'update'], capture_output=True)
        subprocess.run(
            ['apt-get', 'install', '-y', '--no-install-recommends', 'chromium'], capture_output=True
        )
        path = shutil.which('chromium')
    if path is None:
        pytest.skip('report: no Chromium (SD_TEST_APT=1 installs it)')
    return path


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """A report with every section, twenty classes and names of some length."""
    rng = np.random.default_rng(0)
    results = [
        {
            'name': name,
            'task': task,
            'dataset': dataset,
            'seed': seed,
            'config': f'configs/demo/{task}.py',
            'arch': 'resnet18',
            'backbone': f'work_dirs/transfer/backbones/{name}_mmdet-01234567.pth',
            'sha256': 64 * name[0],
            'metrics': {metric: float(rng.uniform(0.4, 0.6)) for metric in metrics},
            'per_class': {one: float(rng.uniform()) for one in CLASSES},
            'seconds': 61.0,
            'gpus': 0,
        }
        for name in ('BL', 'SD', 'sd_r152_imagenet_temperature2_lambda1.5_90_epochs_from_scratch_run_1')
        for task, dataset, metrics in (
            ('det', 'voc07', ('mAP_11point', 'mAP_area')),
            ('seg', 'voc12', ('mIoU',)),
            ('probe', 'voc07', ('mAP_linear', 'mAP_knn', 'mAP_low_shot')),
        )
        for seed in range(3)
    ]
    names = list(dict.fromkeys(one['name'] for one in results))
    photo = Image.new('RGB', (160, 128), (90, 120, 150))
    panels = tuple(
        Panel(
            name, draw_boxes(photo, [Detection('dog', (10, 10, 60, 60), 0.9)], ['dog']), f'{name}: dog 0.90'
        )
        for name in ('truth', *names)
    )
    from transfer.transfer_report import costs

    return write_report(
        build_table5(results, data='demo', stages=[{'name': 'det', 'seconds': 61.0}]),
        tmp_path_factory.mktemp('report') / 'report.html',
        samples={'det': [Sample('000001', panels, 'F1: BL 0.50, SD 1.00')]},
        recall={name: {one: np.linspace(1, 0, 101) for one in CLASSES} for name in names},
        confusions=[
            Confusion('det', name, rng.integers(0, 9, (21, 21)), [*CLASSES, NOTHING]) for name in names
        ],
        costs=costs(results),
        provenance=collect_provenance(['tools/transfer.sh det voc07 ' + 60 * 'x']),
    )


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 360])
def test_page_in_a_browser(browser, report, width, scheme, tmp_path):
    # Chromium's window is never narrower than 500 pixels: a frame is.
    framed = tmp_path / 'framed.html'
    page = report.read_text().replace('</head>', f'{CHECK}</head>')
    if scheme == 'dark':
        page = page.replace('@media (prefers-color-scheme: dark)', '@media all')
    inner = tmp_path / 'page.html'
    inner.write_text(page)
    framed.write_text(
        f'<iframe id="page" width="{width}" height="900" style="border: 0" src="page.html"></iframe>'
        '<script>addEventListener("load", () => setTimeout(() => {'
        'const page = document.getElementById("page").contentDocument;'
        'document.body.append(page.getElementById("found"))}, 200))'
        '</script>'
    )
    flags = (
        '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
        '--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000 '
        '--enable-logging=stderr --window-size=1400,1000'
    )
    done = subprocess.run(
        [browser, *flags.split(), f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', framed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    match = re.search(r'<pre id="found">([^<]*)</pre>', done.stdout)
    assert match, done.stdout[-500:] + done.stderr[-2000:]
    found = json.loads(base64.b64decode(match[1]))
    assert found['width'] == width
    assert found['errors'] == [] and 'CONSOLE' not in done.stderr
    assert found['requests'] == []
    assert found['wide'] <= width
    assert found['cut'] == [] and found['overlaps'] == [] and found['small'] == []
    assert found['hiding'] == [], 'row titles stay where they are, the numbers must have room beside them'


def test_labels_that_overlap_are_found_out(browser, tmp_path):
    """The check itself, on a page that is wrong in every way it looks for."""
    page = tmp_path / 'page.html'
    page.write_text(
        f'<!DOCTYPE html><html><head>{CHECK}<script>missing()</script></head><body style="width: 3000px">'
        '<svg width="100" height="50" viewBox="0 0 100 50">'
        '<text x="10" y="40" style="font-size: 6px">tiny</text>'
        '<text x="10" y="20">one</text><text x="12" y="20">two</text>'
        '<text x="80" y="40">far too long</text></svg><img src="elsewhere.png"></body></html>'
    )
    flags = '--headless --no-sandbox --disable-gpu --disable-background-networking --virtual-time-budget=5000'
    done = subprocess.run(
        [browser, *flags.split(), f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(base64.b64decode(re.search(r'<pre id="found">([^<]*)</pre>', done.stdout)[1]))
    assert found['small'] == ['tiny']
    assert found['cut'] == ['far too long'] and found['overlaps'] == ['two / one']
    assert found['wide'] > found['width'] and len(found['errors']) == 1
    assert [Path(one).name for one in found['requests']] == ['elsewhere.png']
