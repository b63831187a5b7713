# Label refinery (Bagherinezhad et al., 2018): the last generation's scores on the very crop are the only
# labels (T = 1, no hard label).
method = dict(type='SnapshotDistillationHook', temperature=1.0, lambda_s=0.0)
