"""Five of the networks in PyTorch, layer by layer as here: what others would run.

Built as their public ports are, eager. Maps are [N, C, H, W], images floats; a network
returns (logits, auxiliary logits or None). Their parameters are random: they are for
benchmarks, and experiments.benchmarks.against_torch checks their numbers and shapes.
"""

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 21


def _conv_bn(channels, features, size, relu=True, **window):
    window.setdefault("padding", window.get("dilation", 1) * (size // 2))
    parts = [nn.Conv2d(channels, features, size, bias=False, **window)]
    parts.append(nn.BatchNorm2d(features))
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))


def _resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class UNet(nn.Module):
    """The paper's: unpadded, transposed 2x2 convolutions."""

    def __init__(self, widths=(64, 128, 256, 512, 1024)):
        super().__init__()

        def pair(channels, features):
            parts = []
            for c in (channels, features):
                parts += [nn.Conv2d(c, features, 3), nn.ReLU(inplace=True)]
            return nn.Sequential(*parts)

        self.down = nn.ModuleList(map(pair, (3, *widths[:-1]), widths))
        above = widths[-2::-1]
        below = widths[:0:-1]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2)
            for a, b in zip(above, below, strict=True)
        )
        self.decode = nn.ModuleList(pair(2 * a, a) for a in above)
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, x):
        skips = []
        for level, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, pair in zip(self.ups, self.decode, strict=True):
            x, skip = up(x), skips.pop()
            cut = (skip.shape[2] - x.shape[2]) // 2
            skip = skip[:, :, cut : cut + x.shape[2], cut : cut + x.shape[3]]
            x = pair(torch.cat([skip, x], 1))
        return self.head(x), None


class FCN8s(nn.Module):
    """VGG16 with 100 pixels of padding; the upsampling is fixed."""

    def __init__(self):
        super().__init__()
        stages, channels = [], 3
        for features, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            parts = []
            for _ in range(layers):
                padding = 100 if channels == 3 else 1
                parts.append(nn.Conv2d(channels, features, 3, padding=padding))
                parts.append(nn.ReLU(inplace=True))
                channels = features
            parts.append(nn.MaxPool2d(2, ceil_mode=True))
            stages.append(nn.Sequential(*parts))
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Sequential(
            *(nn.Conv2d(512, 4096, 7), nn.ReLU(inplace=True), nn.Dropout2d()),
            *(nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True), nn.Dropout2d()),
        )
        scores = (nn.Conv2d(c, CLASSES, 1) for c in (256, 512, 4096))
        self.score3, self.score4, self.score = scores
        self.up2, self.up4, self.up8 = (
            nn.ConvTranspose2d(CLASSES, CLASSES, 2 * s, stride=s, bias=False)
            for s in (2, 2, 8)
        )
        for up in (self.up2, self.up4, self.up8):
            up.requires_grad_(False)

    def forward(self, x):
        height, width = x.shape[2:]
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.up2(self.score(self.fc(x)))
        for features, score, cut, up in (
            (maps[3], self.score4, 5, self.up4),
            (maps[2], self.score3, 9, self.up8),
        ):
            skip = score(features)
            x = x + skip[:, :, cut : cut + x.shape[2], cut : cut + x.shape[3]]
            x = up(x)
        return x[:, :, 31 : 31 + height, 31 : 31 + width].contiguous(), None


class _RU(nn.Module):
    def __init__(self, channels, features):
        super().__init__()
        self.body = nn.Sequential(
            _conv_bn(channels, features, 3), _conv_bn(features, features, 3, relu=False)
        )
        self.project = nn.Identity()
        if channels != features:
            self.project = nn.Conv2d(channels, features, 1, bias=False)

    def forward(self, x):
        return self.project(x) + self.body(x)


class _FRRU(nn.Module):
    def __init__(self, channels, features, scale):
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(
            _conv_bn(channels + 32, features, 3), _conv_bn(features, features, 3)
        )
        self.residual = nn.Conv2d(features, 32, 1)

    def forward(self, y, z):
        y = self.body(torch.cat([y, F.max_pool2d(z, self.scale)], 1))
        return y, z + F.interpolate(self.residual(y), scale_factor=self.scale)


class FRRNA(nn.Module):
    """FRRN A."""

    UNITS = (3, 4, 2, 2, 2, 2, 2)
    CHANNELS = (96, 192, 384, 384, 192, 192, 96)
    SCALES = (2, 4, 8, 16, 8, 4, 2)

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(_conv_bn(3, 48, 5), *(_RU(48, 48) for _ in range(3)))
        self.split = _conv_bn(48, 32, 1, relu=False)
        stages, before = [], 48
        for units, features, scale in zip(self.UNITS, self.CHANNELS, self.SCALES):
            inputs = (before, *[features] * (units - 1))
            stages.append(nn.ModuleList(_FRRU(c, features, scale) for c in inputs))
            before = features
        self.stages = nn.ModuleList(stages)
        self.last = nn.Sequential(_RU(before + 32, 48), _RU(48, 48), _RU(48, 48))
        self.classifier = nn.Conv2d(48, CLASSES, 1)

    def forward(self, x):
        def rescale(y, now, then):
            if then > now:
                return F.max_pool2d(y, then // now)
            return F.interpolate(y, scale_factor=now // then, mode="bilinear")

        y = self.first(x)
        z, scale = self.split(y), 1
        for stage, then in zip(self.stages, self.SCALES, strict=True):
            y, scale = rescale(y, scale, then), then
            for unit in stage:
                y, z = unit(y, z)
        x = torch.cat([rescale(y, scale, 1), z], 1)
        return self.classifier(self.last(x)), None


class _Bottleneck(nn.Module):
    def __init__(self, channels, width, stride, rate):
        super().__init__()
        self.body = nn.Sequential(
            _conv_bn(channels, width, 1, stride=stride),
            _conv_bn(width, width, 3, dilation=rate),
            _conv_bn(width, 4 * width, 1, relu=False),
        )
        self.shortcut = nn.Identity()
        if stride > 1 or channels != 4 * width:
            self.shortcut = _conv_bn(channels, 4 * width, 1, relu=False, stride=stride)

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class _ResNet(nn.Module):
    """Stride 8; returns the maps of the last two stages."""

    def __init__(self, stem, channels, blocks, width=64):
        super().__init__()
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        stages = []
        widths = [width * 2**stage for stage in range(4)]
        for count, width, stride, rate in zip(
            blocks, widths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True
        ):
            parts = []
            for index in range(count):
                parts.append(_Bottleneck(channels, width, 1 if index else stride, rate))
                channels = 4 * width
            stages.append(nn.Sequential(*parts))
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            before, x = x, stage(x)
        return before, x


class DeepLab(nn.Module):
    """DeepLab v2: a ResNet and ASPP, one scale."""

    def __init__(
        self,
        blocks=(3, 4, 23, 3),
        width=64,
        rates=(6, 12, 18, 24),
        classes=CLASSES,
    ):
        super().__init__()
        stem = [_conv_bn(3, width, 7, stride=2)]
        self.backbone = _ResNet(stem, width, blocks, width)
        self.branches = nn.ModuleList(
            nn.Conv2d(32 * width, classes, 3, padding=rate, dilation=rate)
            for rate in rates
        )

    def forward(self, x):
        features = self.backbone(x)[1]
        scores = sum(branch(features) for branch in self.branches)
        return _resize(scores, x.shape[2:]), None


class PSPNet(nn.Module):
    """PSPNet-50 with its auxiliary head."""

    def __init__(self):
        super().__init__()
        stem = [
            _conv_bn(3, 64, 3, stride=2),
            _conv_bn(64, 64, 3),
            _conv_bn(64, 128, 3),
        ]
        self.backbone = _ResNet(stem, 128, (3, 4, 6, 3))
        self.bins = 1, 2, 3, 6
        self.pyramid = nn.ModuleList(_conv_bn(2048, 512, 1) for _ in self.bins)

        def head(channels, features):
            last = nn.Dropout2d(0.1), nn.Conv2d(features, CLASSES, 1)
            return nn.Sequential(_conv_bn(channels, features, 3), *last)

        self.head, self.aux = head(4096, 512), head(1024, 256)

    def forward(self, x):
        size = x.shape[2:]
        before, features = self.backbone(x)
        levels = [features]
        for bins, level in zip(self.bins, self.pyramid, strict=True):
            y = level(F.adaptive_avg_pool2d(features, bins))
            levels.append(_resize(y, features.shape[2:]))
        logits = _resize(self.head(torch.cat(levels, 1)), size)
        return logits, _resize(self.aux(before), size) if self.training else None
