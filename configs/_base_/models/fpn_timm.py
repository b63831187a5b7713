# Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019) on any network of timm's, in
# mmseg's usual settings, but for group normalisation in the head, which is that paper's.
custom_imports = dict(imports=['transfer.timm_pyramid'], allow_failed_imports=False)
# A run puts name and args of its network here, its channels into the neck, and the mean and std of its
# pretraining into the preprocessor. Batch normalisation of a pretraining is frozen, and no stage is.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size=(512, 512)),
    ),
    backbone=dict(type='TimmPyramid', name='resnet50', norm_eval=True),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type='GN', num_groups=32, requires_grad=True),
        align_corners=False,
        # The mean is over labelled pixels: the 255 border and the padding do not dilute it.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
