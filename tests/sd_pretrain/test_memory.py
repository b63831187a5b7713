"""Freed memory stays with the process, unless the user has set how the C library deals with it."""

import os
import subprocess
import sys

import pytest

CODE = """
import numpy as np
from sd_pretrain.memory import keep_freed_memory

done = keep_freed_memory()

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096

for _ in range(2):
    block = np.ones(2**25)
    most = resident()
    del block
print(done, most - resident() < 2**20)
"""


def run(**env):
    bare = {key: value for key, value in os.environ.items() if not key.startswith(('MALLOC_', 'GLIBC_'))}
    done = subprocess.run(
        [sys.executable, '-c', CODE], env={**bare, **env}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='Linux tells what is resident')
def test_a_freed_block_stays_resident_but_for_a_user_who_says_otherwise():
    assert run() == ['True', 'True']
    assert run(MALLOC_TRIM_THRESHOLD_='131072') == ['False', 'False']
