# Detection on data of your own in COCO's layout, with any backbone. Copy this file beside it, and change what
# stands first; then: tools/transfer.sh det NAME BL=bl.pth SD=sd.pth --config configs/own/COPY.py
_base_ = ['../det/faster-rcnn_timm-fpn_8xb2_voc07.py']

dataset = 'NAME'
classes = ('apple', 'pear')  # as the annotations spell them
root = 'data/NAME'
train = dict(ann_file='annotations/train.json', data_prefix=dict(_delete_=True, img='train/'))
test = dict(ann_file='annotations/val.json', data_prefix=dict(_delete_=True, img='val/'))

own = dict(type='CocoDataset', data_root=root, metainfo=dict(classes=classes))
model = dict(roi_head=dict(bbox_head=dict(num_classes=len(classes))))
train_dataloader = dict(dataset=dict(**own, **train))
val_dataloader = dict(dataset=dict(**own, **test))
test_dataloader = val_dataloader
