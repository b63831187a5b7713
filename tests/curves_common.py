"""Logs of pretrainings, as their curves are read from them."""

from mmengine.visualization import LocalVisBackend

ITERATIONS = 4  # in an epoch


def log(work_dir, stamp, first_epoch, last_epoch, loss=1.0):
    """Write a training's log with mmengine's own writer: a line every two iterations and one an epoch."""
    backend = LocalVisBackend(save_dir=work_dir / stamp / 'vis_data')
    for epoch in range(first_epoch, last_epoch + 1):
        for step in range((epoch - 1) * ITERATIONS + 2, epoch * ITERATIONS + 1, 2):
            scalars = {'lr': 0.1, 'loss': loss, 'time': 0.1, 'epoch': epoch, 'iter': step}
            backend.add_scalars(scalars, step=step)
        backend.add_scalars({'accuracy/top1': 10.0 * epoch * loss, 'accuracy/top5': 50.0}, step=epoch)
    return work_dir


def leave_config(work_dir, ends):
    text = f"custom_hooks = [dict(type='SnapshotDistillationHook', ends={ends})]\n"
    (work_dir / 'any_name.py').write_text(text)
