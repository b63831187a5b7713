"""From a pretrained checkpoint to a verdict: conversion, fine-tuning on VOC, comparison."""
