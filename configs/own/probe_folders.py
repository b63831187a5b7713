# Probes of frozen features of any backbone on images of your own, with a folder for each class, as ImageNet
# has it: train/CLASS/*.jpg and val/CLASS/*.jpg. Copy this file beside it, and change what stands first; then:
# tools/transfer.sh probe NAME BL=bl.pth SD=sd.pth --config configs/own/COPY.py
_base_ = ['../probe/svm-knn_timm-frozen_voc07.py']

dataset = 'NAME'
root = 'data/NAME'

train_dataloader = dict(dataset=dict(_delete_=True, type='ClassFolders', data_root=f'{root}/train'))
val_dataloader = dict(dataset=dict(_delete_=True, type='ClassFolders', data_root=f'{root}/val'))
