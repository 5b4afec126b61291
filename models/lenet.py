"""LeNet as Caffe trains it on MNIST (20 and 50 channels, 500 hidden units); no BatchNorm.

It is `MnistNet` of AI-secure/DBA (models/MnistNet.py at 3cabf7e) and of thinh-dao/BackFed (backfed/models/mnistnet.py
at ab3bcbd), with their keys, so that BackFed's checkpoint for EMNIST is read as it is. DBA's ends in a log-softmax,
which changes nothing in cross entropy.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions without padding, each with a 2x2 max pooling behind it, two dense layers (500 and classes).

    431,080 trainable parameters for 1x28x28 images and 10 classes, 457,132 for 62.
    """

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2  # each convolution takes 4 pixels, each pooling halves
        if side < 1:
            raise ValueError(
                f"dataset.image_size={image_size} does not fit model=lenet, which leaves (image_size - 12) / 4 pixels: "
                "must be >= 16 (take model=resnet8)"
            )
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, image_size, image_size] normalised images -> [B, num_classes] logits."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2), inplace=True)  # relu and max commute
        x = F.relu(F.max_pool2d(self.conv2(x), 2), inplace=True)
        return self.fc2(F.relu(self.fc1(x.flatten(1)), inplace=True))
