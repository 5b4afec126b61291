"""VGG-19 with BatchNorm in its CIFAR form: dense layers of 512 instead of 4096.

`dropout` is 0.5 before the first two dense layers in zhmzm/FLAME (models/Nets.py, VGG, at c5f94e65), 0 in
conf/model/vgg19_bn.yaml.
"""

from torch import Tensor, nn

from models.blocks import make_dropout

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # (channels, convolutions); a 2x2 max pooling ends each


class VGG19BN(nn.Module):
    """Simonyan and Zisserman, ICLR 2015, table 1, column E, with BatchNorm after each convolution, as in zhmzm/FLAME.

    20,565,834 trainable parameters and 16 BatchNorm layers for 3x32x32 images and 10 classes.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int, dropout: float) -> None:
        super().__init__()
        side = image_size // 2 ** len(STAGES)
        if side < 1:
            raise ValueError(
                f"dataset.image_size={image_size} does not fit model=vgg19_bn, which halves it five times: "
                "must be >= 32 (take dataset=cifar10 or model=resnet8)"
            )
        layers: list[nn.Module] = []
        for channels, convolutions in STAGES:
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(in_channels, channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.dropout = make_dropout(dropout)
        self.classifier = nn.Sequential(
            nn.Linear(512 * side * side, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, image_size, image_size] normalised images -> [B, num_classes] logits."""
        x = self.features(x).flatten(1)
        first, relu, second, *rest = self.classifier
        x = second(self.dropout(relu(first(self.dropout(x)))))
        for layer in rest:
            x = layer(x)
        return x
