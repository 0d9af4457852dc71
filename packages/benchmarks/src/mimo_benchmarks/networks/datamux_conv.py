"""DataMUX's CNN (Murahari et al., 2022), written from the paper; N images always share a pass."""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mimoconv.config import check_task_fields
from vsa_core import checks
from vsa_core.hub import Pretrained


@dataclass(frozen=True, kw_only=True)
class DataMUXConvConfig:
    """Configuration of DataMUX's CNN.

    Attributes:
        capacity: N: the number of images that share every pass.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels; at least 20.
        num_classes: Number of classes.
        mean: Mean of each channel over the training images, from 0 to 1; `predict` normalises uint8 images by it.
        std: Standard deviation of each channel over the training images; `predict` normalises uint8 images by it.
        class_names: Names of the classes, in the order of the logits.
    """

    capacity: int = 4
    in_channels: int = 1
    image_size: int = 20
    num_classes: int = 10
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        sizes = ("capacity", "in_channels", "image_size", "num_classes")
        checks.positive(**{name: getattr(self, name) for name in sizes})
        if self.image_size < 20:
            raise ValueError(
                f"image_size must be at least 20, so that the last convolution sees 3 x 3 pixels, got {self.image_size}"
            )
        check_task_fields(self)

    @property
    def label(self) -> str:
        """Return the name of the network in tables."""
        return "DataMUXConv"

    @property
    def last_size(self) -> int:
        """Return height and width of the last feature maps, after three convolutions without padding and two pools."""
        return ((self.image_size - 2) // 2 - 3) // 2 - 2


class DataMUXConv(Pretrained):
    """A LeNet on the sum of N images, each of which has gone through two convolutions of its own.

    From the paper: all sizes, tanh everywhere, answers trained towards 1 for the class and -1 for the others. That only the
    first two convolutions are padded follows from its 0.88 and 0.55 million multiply-adds per image with N = 1 and 16. Chosen
    here: pools are means, as in LeNet-5; all weights are trained, and start with variance 1 / fan-in and biases of 0, as LeCun
    et al. (1998, Efficient BackProp) advise for tanh, because signals fade with torch's default start.

    >>> import torch
    >>> network = DataMUXConv(DataMUXConvConfig(capacity=4))
    >>> network(torch.rand(8, 4, 1, 20, 20)).shape
    torch.Size([8, 4, 10])
    """

    hub_module = "mimo_benchmarks.networks.datamux"

    def __init__(self, config: DataMUXConvConfig) -> None:
        super().__init__()
        self.config, n = config, config.capacity
        self.mux = nn.Sequential(  # a group of channels is an image
            nn.Conv2d(n * config.in_channels, n * 16, 3, padding=1, groups=n),
            nn.Tanh(),
            nn.Conv2d(n * 16, n * 8, 3, padding=1, groups=n),
            nn.Tanh(),
        )
        self.lenet = nn.Sequential(
            *(nn.Conv2d(8, 10, 3), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(10, 16, 4), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(16, 120, 3), nn.Tanh(), nn.Flatten()),
            *(nn.Linear(120 * config.last_size**2, 84), nn.Tanh()),
        )
        self.demux = nn.Sequential(nn.Linear(84, n * 84), nn.Tanh())  # N layers side by side
        self.head = nn.Sequential(nn.Linear(84, config.num_classes), nn.Tanh())
        for weight in self.parameters():
            nn.init.zeros_(weight) if weight.dim() == 1 else nn.init.kaiming_normal_(weight, nonlinearity="linear")

    def forward(self, images: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n classes"]:
        """Compute answers from -1 to 1, the highest for the class.

        Raises:
            ValueError: there are not N images per pass, or images have another size.
        """
        config = self.config
        size = (config.capacity, config.in_channels, config.image_size, config.image_size)
        if images.dim() != 5 or images.shape[1:] != size:
            raise ValueError(f"images have shape {tuple(images.shape)}; DataMUX always needs (b, n, c, h, w) with {size} after b")
        own = rearrange(self.mux(rearrange(images, "b n c h w -> b (n c) h w")), "b (n c) h w -> b n c h w", c=8)
        answers: Tensor = self.head(rearrange(self.demux(self.lenet(own.sum(1))), "b (n f) -> b n f", f=84))
        return answers
