# Probes in the emoji world (scenes of 160x128, 320 to fit on): the middle 128x128, up to 8 images a class.
_base_ = ['../probe/svm-knn_r18-frozen_voc07.py']

view = dict(resize=128, crop=128)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
low_shot = dict(shots=(1, 2, 4, 8))
