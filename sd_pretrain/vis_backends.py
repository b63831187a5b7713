"""The places a config sends its logs to: are their packages there?"""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.config import Config

from sd_pretrain.cli import InputError

# mmengine's backend, the module it imports, and the extra of this project that installs it.
_MODULES = {
    'TensorboardVisBackend': ('tensorboard', 'tensorboard'),
    'WandbVisBackend': ('wandb', 'wandb'),
    'MLflowVisBackend': ('mlflow', 'mlflow'),
}


def check_vis_backends(cfg: Config) -> None:
    """Refuse a config whose ``visualizer.vis_backends`` need a package that is not installed.

    Raises:
        InputError: names the backend and what to install.
    """
    for backend in (cfg.get('visualizer') or {}).get('vis_backends') or []:
        module, extra = _MODULES.get(str(backend.get('type')), (None, None))
        if module is not None and find_spec(module) is None:
            raise InputError(
                f'{backend["type"]} needs the package {module}: '
                f"pip install -e '.[{extra}]' -c constraints.txt"
            )
