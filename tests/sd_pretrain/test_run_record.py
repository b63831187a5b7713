from types import SimpleNamespace

from mmengine.logging import MessageHub

from sd_pretrain.run_record import HISTORY, RunRecordHook


def test_histories_of_a_long_run_stay_short():
    hub = MessageHub('long run')
    runner = SimpleNamespace(message_hub=hub)
    hook = RunRecordHook()
    hub.update_scalar('train/loss', 0.0)
    hook.after_train_epoch(runner)
    for value in range(HISTORY + 5):
        hub.update_scalar('train/loss', float(value))
    values, counts = hub.get_scalar('train/loss').data
    assert len(values) == len(counts) == HISTORY
    assert values[-1] == HISTORY + 4
