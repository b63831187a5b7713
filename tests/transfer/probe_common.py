"""Settings that make a probe small."""

TINY = [
    *['view.resize=48', 'view.crop=40', 'low_shot.shots=[1,2]', 'svm.folds=2', 'svm.costs=[1.0,10.0]'],
    *['knn.k=5', 'train_dataloader.batch_size=8'],
]
