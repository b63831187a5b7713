"""The head of DeepLabv3 as its authors have it; configs name this module in their ``custom_imports``."""

from mmseg.registry import MODELS

from transfer import mmcv_ops

# A config that is read imports this before anybody else asks for mmcv's ops.
mmcv_ops.install()

from mmcv.cnn import ConvModule  # noqa: E402
from mmseg.models.decode_heads import ASPPHead  # noqa: E402


@MODELS.register_module()
class PointwiseASPPHead(ASPPHead):
    """mmseg's ``ASPPHead``, the branches fused by a 1x1 convolution where mmseg has a 3x3 one.

    As Sec. 3.3 of Chen et al. 2017 ("Rethinking Atrous Convolution") and the public code have it.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bottleneck = ConvModule(
            self.bottleneck.in_channels,
            self.channels,
            1,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
