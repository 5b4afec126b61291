import torch

from flame.data.samples import Dataset, Samples


def bright_rows(train: int, test: int, classes: int, channels: int, image_size: int) -> Dataset:
    """Noisy images with one bright row; its number is the class."""
    stream = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Samples:
        y = torch.arange(count) % classes  # [N] int64
        x = torch.randint(0, 100, (count, channels, image_size, image_size), generator=stream, dtype=torch.uint8)
        x[torch.arange(count), :, y] += 150  # [N, C, H, W] uint8
        return Samples(x, y)

    return Dataset("bright_rows", drawn(train), drawn(test), mean=(0.27,), std=(0.23,), classes=classes)
