# Probes of frozen features, nothing of the backbone is trained. Squared-hinge SVMs with a double weight on
# positives are those of Goyal et al. 2019 ("Scaling and benchmarking self-supervised visual representation
# learning", whose public code has these numbers).
model = dict(
    backbone=dict(type='ResNet', depth=50),
    # Those of the detector and the segmentor (RGB).
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
)
svm = dict(
    # One of these for each class, by 3-fold cross-validation on trainval; the source tries 26, 1e-7 to 100.
    costs=(0.01, 0.1, 1.0, 10.0, 100.0),
    folds=3,
    positive_weight=2,
)
low_shot = dict(
    # k positive images of a class and (20 - 1) k without it, drawn by the seed.
    shots=(1, 2, 4, 8, 16, 32, 64, 96),
    # Ours: one image has no cross-validation. The source takes the best on the test images, we do not.
    cost=0.5,
)
# Neighbours weigh exp(similarity / temperature) (Wu et al. 2018, "Unsupervised feature learning via
# non-parametric instance discrimination"); k is ours, for the 5,011 images of VOC2007.
knn = dict(k=20, temperature=0.07)
