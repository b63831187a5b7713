# Born-again networks (Furlanello et al., 2018): the last generation teaches at T = 1, beside the labels;
# that both terms count alike is our choice.
method = dict(type='SnapshotDistillationHook', temperature=1.0, lambda_s=1.0)
