# Faster R-CNN with FPN as faster-rcnn_r50-fpn.py has it, on any network of timm's.
_base_ = ['./faster-rcnn_r50-fpn.py']

custom_imports = dict(imports=['transfer.timm_pyramid'], allow_failed_imports=False)
# A run puts name and args of its network here, its channels into the neck, and the mean and std of its
# pretraining into the preprocessor. Batch normalisation of a pretraining is frozen, and no stage is.
model = dict(backbone=dict(_delete_=True, type='TimmPyramid', name='resnet50', norm_eval=True))
