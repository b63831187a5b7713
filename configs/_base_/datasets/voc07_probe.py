# PASCAL VOC2007 as 20 yes-or-no questions: 5,011 trainval images to fit on, 4,952 test images.
# Short side 256, the middle 224: what the backbones were tested with on ILSVRC2012.
task = 'probe'
dataset = 'voc07'
data_root = 'data/VOCdevkit/VOC2007'

view = dict(resize=256, crop=224)
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(data_root=data_root, ann_file='ImageSets/Main/trainval.txt'),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(data_root=data_root, ann_file='ImageSets/Main/test.txt'),
)
