# Segmentation on images and masks of your own in folders, with any backbone: a mask has the name of its image
# and holds indices of classes, 255 where there is no label. Copy this file beside it, and change what stands
# first; then: tools/transfer.sh seg NAME BL=bl.pth SD=sd.pth --config configs/own/COPY.py
_base_ = ['../seg/fpn_timm_8xb1_voc12aug.py']

dataset = 'NAME'
classes = ('background', 'apple', 'pear')  # by index; a background that is no class of its own comes first
root = 'data/NAME'
train = dict(data_prefix=dict(img_path='images/train', seg_map_path='masks/train'))
test = dict(data_prefix=dict(img_path='images/val', seg_map_path='masks/val'))
suffixes = dict(img_suffix='.jpg', seg_map_suffix='.png')

own = dict(_delete_=True, type='BaseSegDataset', data_root=root, metainfo=dict(classes=classes), **suffixes)
model = dict(
    # Test images may be larger than crops: whole ones, padded to what all networks take.
    data_preprocessor=dict(test_cfg=dict(_delete_=True, size_divisor=32)),
    decode_head=dict(num_classes=len(classes)),
)
train_dataloader = dict(dataset=dict(**own, **train, pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(**own, **test, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
