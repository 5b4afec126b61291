"""Models: sizes against published or hand-worked counts, what they accept, and that every norm variant trains."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.vgg import cfgs, make_layers

from models.cnn import CNN
from models.lenet import LeNet
from models.resnet8 import ResNet8
from models.resnet18 import ResNet18
from models.vgg19_bn import VGG19BN
from models.vit_tiny import Block, ViTTiny

YAMLS = sorted((Path(__file__).parents[2] / "conf/model").glob("*.yaml"))
WIDTHS, LIGHT = (64, 128, 256, 512), (32, 64, 128, 256)

# name: (build, trainable parameters, BatchNorm layers, image shape) for 10 classes
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int, tuple[int, int, int]]] = {
    "resnet8": (lambda: ResNet8(1, 10, "batch"), 77_754, 9, (1, 28, 28)),
    "resnet8-group": (lambda: ResNet8(1, 10, "group"), 77_754, 0, (1, 28, 28)),
    # BatchNorm's weight and bias (2 x 336 channels) become the convolutions' biases (336)
    "resnet8-none": (lambda: ResNet8(1, 10, "none"), 77_754 - 336, 0, (1, 28, 28)),
    "resnet18": (lambda: ResNet18(3, 10, WIDTHS, "batch"), 11_173_962, 20, (3, 32, 32)),
    "resnet18_light": (lambda: ResNet18(3, 10, LIGHT, "batch"), 2_797_610, 20, (3, 32, 32)),
    "resnet18_light-none": (lambda: ResNet18(3, 10, LIGHT, "none"), 2_797_610 - 2_400, 0, (3, 32, 32)),
    "vgg19_bn": (lambda: VGG19BN(3, 10, 32, 0.0), 20_565_834, 16, (3, 32, 32)),
    "cnn": (lambda: CNN(1, 10, 28, 0.0), 1_199_882, 0, (1, 28, 28)),
    # 49 positions, 4 x 4 patches with a bias, 4 blocks of 12 w^2 + 13 w, a norm and the classifier, with w = 64
    "vit_tiny": (
        lambda: ViTTiny(1, 10, 28, 4, 64, 4, 4),
        49 * 64 + 17 * 64 + 4 * (12 * 64 * 64 + 13 * 64) + 128 + 650,
        0,
        (1, 28, 28),
    ),
    "lenet": (lambda: LeNet(1, 10, 28), 20 * 26 + 50 * 501 + 500 * 801 + 10 * 501, 0, (1, 28, 28)),
}
SMALL = {  # every model that takes the 8x8 digits
    "resnet8": lambda: ResNet8(1, 10, "batch"),
    "resnet8-group": lambda: ResNet8(1, 10, "group"),
    "resnet8-none": lambda: ResNet8(1, 10, "none"),
    "resnet18_light-none": lambda: ResNet18(1, 10, LIGHT, "none"),
    "cnn": lambda: CNN(1, 10, 8, 0.0),
    "vit_tiny": lambda: ViTTiny(1, 10, 8, 4, 32, 1, 4),
}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_batchnorm_layers(name: str) -> None:
    build, parameters, batchnorms, _ = MODELS[name]
    model = build()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == batchnorms
    statistics = [key for key, _ in model.named_buffers() if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) == 2 * batchnorms


@pytest.mark.parametrize("name", MODELS)
def test_the_classifier_comes_last(name: str) -> None:
    model = MODELS[name][0]()
    trainable = dict(model.named_parameters())
    *_, weight, bias = (key for key in model.state_dict() if key in trainable)
    head = weight.removesuffix(".weight")
    assert isinstance(model.get_submodule(head), nn.Linear)
    assert bias == f"{head}.bias"
    assert len(trainable[bias]) == 10


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_resnets_take_any_image_size(size: int, norm: str) -> None:
    for model in (ResNet8(1, 7, norm), ResNet18(1, 7, (8, 16, 16, 32), norm)):
        assert model(noise(2, 1, size, size)).shape == (2, 7)


def assert_same_logits(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """In training, and then by the running statistics that this has left."""
    with torch.no_grad():
        for training in (True, False):
            torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-5)


def test_resnet18_is_torchvision_s_without_its_stem_for_large_images() -> None:
    ours, theirs = seeded(lambda: ResNet18(3, 4, WIDTHS, "batch")), resnet18(num_classes=4)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    assert_same_logits(ours, theirs, noise(4, 3, 16, 16))


def test_vgg_s_convolutions_are_torchvision_s() -> None:
    ours, features = seeded(lambda: VGG19BN(3, 4, 32, 0.0)), make_layers(cfgs["E"], batch_norm=True)
    features.load_state_dict(ours.get_submodule("features").state_dict())
    theirs = nn.Sequential(features, nn.Flatten(), ours.get_submodule("classifier"))
    assert_same_logits(ours, theirs, noise(4, 3, 32, 32))


@pytest.mark.parametrize("size", [6, 7, 8, 28, 32])
def test_cnn_computes_its_dense_layer(size: int) -> None:
    assert CNN(3, 4, size, 0.0)(noise(2, 3, size, size)).shape == (2, 4)


@pytest.mark.parametrize("size", [16, 19, 20, 28, 32])
def test_lenet_computes_its_dense_layer(size: int) -> None:
    assert LeNet(3, 4, size)(noise(2, 3, size, size)).shape == (2, 4)


def test_lenet_has_the_keys_and_shapes_of_backfed_s_checkpoint() -> None:
    """Of EMNIST_BYCLASS_unweighted_fedavg/mnistnet_round_1000_dir_0.5.pth in its repository, at ab3bcbd."""
    kernels = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (62, 500)}
    theirs = {f"{k}.{part}": v[:size] for k, v in kernels.items() for part, size in (("weight", 4), ("bias", 1))}
    assert {key: tuple(value.shape) for key, value in LeNet(1, 62, 28).state_dict().items()} == theirs


def test_lenet_is_the_stack_of_its_layers() -> None:
    """In the order of its authors: convolution, relu, pooling."""
    ours, x = seeded(lambda: LeNet(1, 4, 28)), noise(3, 1, 28, 28)
    conv1, conv2, fc1, fc2 = ours.children()
    halved = nn.MaxPool2d(2)
    rest = (nn.Flatten(), fc1, nn.ReLU(), fc2)
    assert_same_logits(ours, nn.Sequential(conv1, nn.ReLU(), halved, conv2, nn.ReLU(), halved, *rest), x)


@pytest.mark.parametrize("size", [32, 40, 64])
def test_vgg_computes_its_dense_layer(size: int) -> None:
    assert VGG19BN(1, 4, size, 0.0)(noise(2, 1, size, size)).shape == (2, 4)


def test_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"dataset.image_size=5 does not fit model=cnn.* >= 6"):
        CNN(1, 10, 5, 0.0)
    with pytest.raises(ValueError, match=r"dataset.image_size=15 does not fit model=lenet.* >= 16"):
        LeNet(1, 10, 15)
    with pytest.raises(ValueError, match=r"dataset.image_size=28 does not fit model=vgg19_bn.* >= 32"):
        VGG19BN(1, 10, 28, 0.0)


def test_a_transformer_block_is_torch_s() -> None:
    """nn.TransformerEncoderLayer with norms first, GELU and no dropout; weights copied by role."""
    ours = seeded(lambda: Block(12, 3))
    theirs = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    roles = {"norm1": theirs.norm1, "out": theirs.self_attn.out_proj, "norm2": theirs.norm2}
    roles |= {"dense.0": theirs.linear1, "dense.2": theirs.linear2}
    with torch.no_grad():
        for name, layer in roles.items():
            layer.load_state_dict(ours.get_submodule(name).state_dict())
        theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
    x = noise(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_a_transformer_tells_the_places_of_its_patches_apart() -> None:
    """Its positions are all that does: without them an exchange of patches changes nothing."""
    model, x = seeded(lambda: ViTTiny(1, 10, 8, 4, 8, 1, 2)), noise(1, 1, 8, 8)
    swapped = x.flip(3).unflatten(3, (2, 4)).flip(4).flatten(3)  # left and right half, each as it was
    assert not torch.allclose(model(x), model(swapped), atol=1e-6)
    nn.init.zeros_(model.position)
    torch.testing.assert_close(model(x), model(swapped), rtol=1e-5, atol=1e-6)


def test_arguments_out_of_range() -> None:
    for size, patch, width, heads, said in [
        (28, 5, 64, 4, r"model.patch_size=5 is out of range: must divide dataset.image_size=28"),
        (28, 0, 64, 4, r"model.patch_size=0 is out of range: must be a whole number >= 1"),
        (28, 4, 64, 5, r"model.heads=5 is out of range: must divide model.width=64"),
    ]:
        with pytest.raises(ValueError, match=said):
            ViTTiny(1, 10, size, patch, width, 4, heads)
    with pytest.raises(ValueError, match=r"model.norm=layer .*batch, group or none"):
        ResNet8(1, 10, "layer")
    with pytest.raises(ValueError, match=r"model.norm=layer"):
        ResNet18(1, 10, LIGHT, "layer")
    for widths in ((32, 64), (0, 64, 128, 256)):
        with pytest.raises(ValueError, match=r"model.widths=\[.*four numbers >= 1"):
            ResNet18(1, 10, widths, "batch")


@pytest.mark.parametrize("name", MODELS)
def test_memory_format_changes_nothing_but_rounding(name: str) -> None:
    build, _, _, shape = MODELS[name]
    model, x = seeded(build).eval(), noise(2, *shape)
    with torch.inference_mode():
        plain = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_initialisation_is_a_function_of_the_seed(name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (seeded(SMALL[name], seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_without_norm_every_branch_starts_at_zero() -> None:
    block = seeded(lambda: ResNet8(1, 10, "none")).get_submodule("layer1.0")
    x = noise(2, 16, 8, 8)
    assert torch.equal(block(x), F.relu(x))


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_learn_digits(name: str) -> None:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:640], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(labels[:640])
    model = seeded(SMALL[name])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(4):
        for batch_x, batch_y in zip(x.split(64), y.split(64), strict=True):
            loss = F.cross_entropy(model(batch_x), batch_y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_sets_every_argument(path: Path) -> None:
    """No default hides in Python: the YAML's keys are the constructor's parameters."""
    config = OmegaConf.load(path)
    parameters = inspect.signature(get_object(OmegaConf.select(config, "_target_"))).parameters
    assert list(config) == ["_target_", *parameters]
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())
