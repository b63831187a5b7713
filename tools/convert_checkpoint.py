"""Convert a pretrained ResNet to the layout of another library, and prove that all of it arrives.

python tools/convert_checkpoint.py work_dirs/sd_r152_imagenet work_dirs/backbones/ --to mmdet
python tools/convert_checkpoint.py torchvision:resnet50 work_dirs/backbones/ --to mmseg
"""

import argparse

from sd_pretrain.cli import run_main
from transfer.convert import TARGETS, convert


def main() -> None:
    """Parse, convert, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'src',
        help='checkpoint of ours, torchvision, timm or mmpretrain (.pth, .pt, .safetensors); '
        'a pretraining work dir; torchvision:resnet152[.IMAGENET1K_V1]; timm:resnet152[.a1_in1k]',
    )
    parser.add_argument(
        'dst',
        help='folder (existing, or ending in /), or file name; the hash of the content is added to it',
    )
    parser.add_argument('--to', required=True, choices=TARGETS)
    parser.add_argument(
        '--expect-arch', metavar='ARCH', help='refuse another architecture than this, e.g. resnet152'
    )
    parser.add_argument('--key', help='entry of the checkpoint to take, e.g. state_dict_ema')
    parser.add_argument(
        '--verify',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='run both networks on the same images and compare the features of every stage (default)',
    )
    args = parser.parse_args()
    done = convert(args.src, args.dst, args.to, args.verify, args.expect_arch, args.key)
    print('\n'.join(done.lines()))


if __name__ == '__main__':
    run_main(main)
