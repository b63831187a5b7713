"""A pretraining of a small network of timm's, for the tests of those that are no ResNets."""

import timm
import torch


def save(path, name='test_convnext', **args):
    """As a snapshot of a pretraining; returns the network."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, **args)
    weights = {f'network.{key}': value for key, value in network.state_dict().items()}
    torch.save({'meta': {'schema': 1, 'arch': name, 'network_args': args}, 'state_dict': weights}, path)
    return network.eval()
