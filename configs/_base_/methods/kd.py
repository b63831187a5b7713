# Knowledge distillation (Hinton et al., 2015): another architecture teaches; both logits divided by T, the
# divergence times T^2. T and the weights of the two terms are our choice: they give none for CIFAR-100.
method = dict(type='SnapshotDistillationHook', temperature=4.0, symmetric=True, lambda_s=0.1, lambda_t=0.9)
