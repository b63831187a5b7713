# DeepLabv3 (reference [4] of the paper) at output stride 16, after chenxi116/DeepLabv3.pytorch, deeplab.py.
# BN is trained (SyncBN over GPUs), in the backbone with momentum 0.05, in the head with 0.0003. A 1x1
# convolution fuses the head's branches. There is no auxiliary head. The stem is the plain 7x7 one: the deep
# stem of ResNetV1c has no counterpart in the backbone file and would stay random.
custom_imports = dict(imports=['transfer.aspp_head'], allow_failed_imports=False)
norm_cfg = dict(type='SyncBN', requires_grad=True, momentum=0.05)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(513, 513),
        # 513 = 16 * 32 + 1: with align_corners an image lies on the feature grid as a training crop does.
        test_cfg=dict(size=(513, 513)),
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        contract_dilation=True,
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(
        type='PointwiseASPPHead',
        in_channels=2048,
        in_index=0,
        channels=256,
        dilations=(1, 6, 12, 18),
        dropout_ratio=0,
        num_classes=21,
        norm_cfg=dict(type='SyncBN', requires_grad=True, momentum=0.0003),
        align_corners=True,
        # The mean is over labelled pixels: the 255 border and the padding do not dilute it.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
