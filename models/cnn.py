"""The small convolutional network that zhmzm/FLAME trains on MNIST and Fashion-MNIST (models/Nets.py, CNN_MNIST, at
c5f94e65); no BatchNorm.

`dropout` is 0.5 before each dense layer there, 0 in conf/model/cnn.yaml. Theirs is Dropout2d, which on rows of features
drops single features, as Dropout does.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import make_dropout


class CNN(nn.Module):
    """Two 3x3 convolutions without padding (32 and 64 channels), a 2x2 max pooling, two dense layers (128 and classes).

    1,199,882 trainable parameters for 1x28x28 images and 10 classes.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int, dropout: float) -> None:
        super().__init__()
        side = (image_size - 4) // 2  # each convolution takes 2 pixels, the pooling halves
        if side < 1:
            raise ValueError(
                f"dataset.image_size={image_size} does not fit model=cnn, which leaves (image_size - 4) / 2 pixels: "
                "must be >= 6 (take model=resnet8)"
            )
        self.dropout = make_dropout(dropout)
        self.conv1 = nn.Conv2d(in_channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * side * side, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, image_size, image_size] normalised images -> [B, num_classes] logits."""
        x = F.relu(self.conv1(x), inplace=True)
        x = F.relu(F.max_pool2d(self.conv2(x), 2), inplace=True)  # relu and max commute: a quarter of the elements
        x = F.relu(self.fc1(self.dropout(x.flatten(1))), inplace=True)
        return self.fc2(self.dropout(x))
