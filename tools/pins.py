"""What the environment has, what it should have, and which pins apply; runs before anything is installed.

``tools/setup.sh`` calls this with the interpreter of the environment it sets up::

    python tools/pins.py check         # exit 0 if all of pyproject.toml is met; prints what is not
    python tools/pins.py conflicts     # OpenMMLab's own packages, which the onedl ones collide with
    python tools/pins.py constraints   # constraints.txt less the pins of what is there and suitable
    python tools/pins.py headless      # opencv-python-headless==..., if its cv2 was overwritten by the other
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:  # a new environment has pip only
    from pip._vendor.packaging.requirements import Requirement

try:
    import tomllib
except ImportError:  # Python 3.10
    try:
        import tomli as tomllib
    except ImportError:
        from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 10), (3, 13))  # first supported, first no longer supported

# They install into the same folders as the onedl packages, one half over the other.
UPSTREAM = {
    'mmcv': 'onedl-mmcv',
    'mmcv-full': 'onedl-mmcv',
    'mmcv-lite': 'onedl-mmcv',
    'mmengine': 'onedl-mmengine',
    'mmengine-lite': 'onedl-mmengine',
    'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
}

Installed = Callable[[str], 'str | None']


def installed(name: str) -> str | None:
    """Version of a distribution in this environment, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """Everything ``pip install -e .[demo,test]`` asks for, with its range of versions."""
    with open(ROOT / 'pyproject.toml', 'rb') as file:
        project = tomllib.load(file)['project']
    extras = project['optional-dependencies']
    return [Requirement(line) for line in project['dependencies'] + extras['demo'] + extras['test']]


def pins() -> list[Requirement]:
    """The lines of ``constraints.txt`` that apply to this Python."""
    lines = (line.split('#')[0].strip() for line in (ROOT / 'constraints.txt').read_text().splitlines())
    found = [Requirement(line) for line in lines if line]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate()]


def suits(requirement: Requirement, version: str | None) -> bool:
    """Whether a version (``2.9.1+cu126`` counts as 2.9.1) is there and in the range asked for."""
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def unmet(wanted: Iterable[Requirement], version_of: Installed = installed) -> list[str]:
    """Requirements that are not met, each as ``'torch>=2.6 (found 2.4.0)'``."""
    return [f'{r} (found {version_of(r.name) or "none"})' for r in wanted if not suits(r, version_of(r.name))]


def conflicts(version_of: Installed = installed) -> list[str]:
    """OpenMMLab's own packages that stand in the way of the onedl ones."""
    return [f'{theirs} {version_of(theirs)}' for theirs in UPSTREAM if version_of(theirs) is not None]


def keep_what_suits(
    wanted: Iterable[Requirement], pinned: Iterable[Requirement], version_of: Installed = installed
) -> list[str]:
    """Constraints for an environment that somebody else filled: what is there and suitable stays as it is.

    Where there is a version and ``pyproject.toml`` does not object, the pin goes, so that pip has no reason
    to touch the package. A torch that stays is pinned to itself (another build is no replacement), and then
    torchvision's pin goes too, because each torchvision fits one torch only.
    """
    ranges = {r.name: r for r in wanted}
    lines = []
    torch = version_of('torch')
    own_torch = suits(ranges['torch'], torch)
    for pin in pinned:
        version = version_of(pin.name)
        if pin.name == 'torch' and own_torch:
            lines.append(f'torch=={torch}')
        elif pin.name == 'torchvision' and own_torch and not suits(_of(pinned, 'torch'), torch):
            continue
        elif version is None or not suits(ranges.get(pin.name, Requirement(pin.name)), version):
            lines.append(str(pin))
    return lines


def _of(pinned: Iterable[Requirement], name: str) -> Requirement:
    return next(pin for pin in pinned if pin.name == name)


def headless_to_restore() -> str | None:
    """The ``opencv-python-headless==...`` whose files ``opencv-python`` has overwritten, None if they stand.

    imaug asks for one, mmcv for the other, and both are the package ``cv2``; the headless one needs no libGL.
    """
    version = installed('opencv-python-headless')
    if version is None:
        return None
    files = metadata.files('opencv-python-headless') or []
    stated = next((file for file in files if str(file) == 'cv2/version.py'), None)
    if stated is not None and stated.locate().exists() and 'headless = True' in stated.locate().read_text():
        return None
    return f'opencv-python-headless=={version}'


def main() -> int:
    """Do what the one argument says (see the module's docstring)."""
    command = sys.argv[1] if len(sys.argv) == 2 else None
    if command == 'check':
        if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
            print(f'Python {sys.version.split()[0]} (3.10 to 3.12 are supported)')
            return 1
        missing = unmet(requirements())
        print('\n'.join(missing))
        return 1 if missing else 0
    if command == 'conflicts':
        print('\n'.join(conflicts()))
        return 0
    if command == 'constraints':
        print('\n'.join(keep_what_suits(requirements(), pins())))
        return 0
    if command == 'headless':
        print(headless_to_restore() or '')
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
