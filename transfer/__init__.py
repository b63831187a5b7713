"""From a pretrained checkpoint to a verdict: conversion, fine-tuning, comparison."""

import sd_pretrain  # noqa: F401 - says how threads wait, before PyTorch is loaded
