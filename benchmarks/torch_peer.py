"""DRÆM in PyTorch, to measure the speed of ours against.

Written from the table of layers, with the names that the state dicts of the
authors' release have. Its results are those of `draem_jax`, which a test shows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_SSIM_RADIUS = 5  # A window of 11x11 pixels.
_SSIM_SIGMA = 1.5
_FOCAL_SMOOTH = 1e-5


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to run the networks; its name joins those that are on by `+`.

  Attributes:
    channels_last: memory format of images and kernels.
    compiled: whether `torch.compile` compiles networks and losses.
    bfloat16: whether the networks run under autocast.
    folded: inference alone: batch norms are folded into the convolutions.
    release: training alone: losses as the release computes them, rather than
      without its copies between host and device and with cheaper SSIM.
  """

  channels_last: bool = False
  compiled: bool = False
  bfloat16: bool = False
  folded: bool = False
  release: bool = False

  @classmethod
  def parse(cls, name: str) -> 'Variant':
    """The variant of a name such as 'channels_last+bfloat16' or 'contiguous'.

    Raises:
      ValueError: if a part of the name is unknown.
    """
    parts = set(name.split('+')) - {'contiguous'}
    known = {field.name for field in dataclasses.fields(cls)}
    if parts - known:
      raise ValueError(f'{name}: join some of {", ".join(sorted(known))} by +')
    return cls(**dict.fromkeys(parts, True))


class Encoder(nn.Module):
  """Blocks of two convolutions, pooling between them."""

  def __init__(self, inputs: int, features: tuple[int, ...]):
    super().__init__()
    self.names = []
    for number, width in enumerate(features, start=1):
      self.names.append(f'block{number}')
      self.add_module(self.names[-1], _block(inputs, width, width))
      inputs = width

  def forward(self, x: Tensor) -> list[Tensor]:
    """What each block puts out."""
    outputs = []
    for name in self.names:
      x = functional.max_pool2d(x, 2) if outputs else x
      x = getattr(self, name)(x)
      outputs.append(x)
    return outputs


class Decoder(nn.Module):
  """Stages that double the size: a convolution, a skip or none, two more."""

  def __init__(
    self,
    inputs: int,
    stages: dict[str, tuple[int, int]],
    skips: tuple[int, ...],
    outputs: int,
  ):
    """Channels of what comes in, of each stage by name, of skips, of what goes.

    A stage has two widths: of its first two convolutions and of the third.
    """
    super().__init__()
    self.names = list(stages)
    for (name, (a, b)), skip in zip(stages.items(), skips, strict=True):
      self.add_module(f'up{name}', nn.Sequential(_Double(), *_layer(inputs, a)))
      self.add_module(f'db{name}', _block(a + skip, a, b))
      inputs = b
    self.fin_out = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1))

  def forward(self, x: Tensor, skips: list[Tensor] | None = None) -> Tensor:
    """The result at full size; `skips` come deepest first."""
    for index, name in enumerate(self.names):
      x = getattr(self, f'up{name}')(x)
      x = x if skips is None else torch.cat([x, skips[index]], 1)
      x = getattr(self, f'db{name}')(x)
    return self.fin_out(x)


class ReconstructiveSubNetwork(nn.Module):
  """Removes anomalies from an image."""

  def __init__(self, w: int = 128):
    super().__init__()
    self.encoder = Encoder(3, (w, 2 * w, 4 * w, 8 * w, 8 * w))
    stages = {
      '1': (8 * w, 4 * w),
      '2': (4 * w, 2 * w),
      '3': (2 * w, w),
      '4': (w, w),
    }
    self.decoder = Decoder(8 * w, stages, (0, 0, 0, 0), 3)

  def forward(self, image: Tensor) -> Tensor:
    """The reconstruction [b 3 h w]."""
    return self.decoder(self.encoder(image)[-1])


class DiscriminativeSubNetwork(nn.Module):
  """Segments anomalies."""

  def __init__(self, w: int = 64):
    super().__init__()
    widths = (w, 2 * w, 4 * w, 8 * w, 8 * w)
    self.encoder_segment = Encoder(6, (*widths, 8 * w))
    stages = {
      '_b': (8 * w, 8 * w),
      '1': (4 * w, 4 * w),
      '2': (2 * w, 2 * w),
      '3': (w, w),
      '4': (w, w),
    }
    self.decoder_segment = Decoder(8 * w, stages, widths[::-1], 2)

  def forward(self, joined: Tensor) -> Tensor:
    """The logits [b 2 h w] of reconstruction and image, joined [b 6 h w]."""
    *skips, deepest = self.encoder_segment(joined)
    return self.decoder_segment(deepest, skips[::-1])


class Draem(nn.Module):
  """Both networks in a row."""

  def __init__(
    self, reconstructive_width: int = 128, discriminative_width: int = 64
  ):
    """Initializes as the release does."""
    super().__init__()
    self.reconstructive = ReconstructiveSubNetwork(reconstructive_width)
    self.discriminative = DiscriminativeSubNetwork(discriminative_width)
    for module in self.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
      elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)

  def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction [b 3 h w] and logits [b 2 h w] of images in [0, 1]."""
    reconstruction = self.reconstructive(image)
    joined = torch.cat([reconstruction, image.to(reconstruction.dtype)], 1)
    return reconstruction, self.discriminative(joined)

  def load(self, variables: Mapping[str, Any]) -> 'Draem':
    """Takes the weights of `draem_jax.networks.models.Draem`, on the host."""
    # Here, for a process that measures PyTorch should not hold JAX, too.
    from draem_jax.torch_weights.convert import torch_arrays

    for name, network in self.named_children():
      arrays = torch_arrays(variables, name)
      network.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})
    return self


class _Double(nn.Module):
  """Doubles height and width, bilinearly, corner pixels onto corner pixels."""

  def forward(self, x: Tensor) -> Tensor:
    return functional.interpolate(
      x, scale_factor=2, mode='bilinear', align_corners=True
    )


def _layer(inputs: int, features: int) -> list[nn.Module]:
  return [
    nn.Conv2d(inputs, features, 3, padding=1),
    nn.BatchNorm2d(features),
    nn.ReLU(inplace=True),
  ]


def _block(inputs: int, first: int, second: int) -> nn.Sequential:
  return nn.Sequential(*_layer(inputs, first), *_layer(first, second))


def losses(
  reconstruction: Tensor,
  logits: Tensor,
  image: Tensor,
  mask: Tensor,
  *,
  release: bool = False,
) -> dict[str, Tensor]:
  """The terms of the loss, the range of SSIM chosen by the batch.

  Args:
    reconstruction: [b 3 h w].
    logits: [b 2 h w].
    image: [b 3 h w] in [0, 1].
    mask: [b 1 h w], 1 where anomalous, else 0.
    release: compute them the way the release does.
  """
  reconstruction = reconstruction.to(image.dtype)
  logits = logits.to(image.dtype)
  if release:
    blur, focal = _blur_by_window, _focal_release
    data_range = 2.0 if reconstruction.min() < -0.5 else 1.0
  else:
    blur, focal = _blur_by_products, _focal
    data_range = torch.where(reconstruction.min() < -0.5, 2.0, 1.0)
  return {
    'l2': functional.mse_loss(reconstruction, image),
    'ssim': 1 - _ssim(reconstruction, image, data_range, blur),
    'focal': focal(logits, mask),
  }


def _ssim(x: Tensor, y: Tensor, data_range, blur) -> Tensor:
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  mean_x, mean_y, mean_xx, mean_yy, mean_xy = blur([x, y, x * x, y * y, x * y])
  var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
  covariance = mean_xy - mean_x * mean_y
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  similarity = luminance * (2 * covariance + c2) / (var_x + var_y + c2)
  return similarity.mean()


def _gaussian(like: Tensor) -> Tensor:
  offset = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1).to(like)
  window = torch.exp(-(offset**2) / (2 * _SSIM_SIGMA**2))
  return window / window.sum()


def _blur_by_window(images: list[Tensor]) -> list[Tensor]:
  """Five depthwise convolutions with the 11x11 window, as the release has."""
  line = _gaussian(images[0])
  window = torch.outer(line, line).expand(3, 1, -1, -1)
  return [
    functional.conv2d(x, window, padding=_SSIM_RADIUS, groups=3) for x in images
  ]


def _blur_by_products(images: list[Tensor]) -> Tensor:
  """Two products with banded matrices, all images at once."""
  x = torch.stack(images)
  line = _gaussian(x)

  def banded(size: int) -> Tensor:
    index = torch.arange(size, device=x.device)
    place = index[:, None] - index + _SSIM_RADIUS
    inside = (place >= 0) & (place < len(line))
    return inside * line[place.clamp(0, len(line) - 1)]

  return banded(x.shape[-2]) @ x @ banded(x.shape[-1])


def _focal(logits: Tensor, mask: Tensor) -> Tensor:
  """The focal loss without a one-hot array."""
  anomalous = mask[:, 0].clamp(_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH)
  normal = (1 - mask[:, 0]).clamp(_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH)
  difference = logits[:, 1] - logits[:, 0]
  probability = (
    anomalous * torch.sigmoid(difference)
    + normal * torch.sigmoid(-difference)
    + _FOCAL_SMOOTH
  )
  return (-((1 - probability) ** 2) * probability.log()).mean()


def _focal_release(logits: Tensor, mask: Tensor) -> Tensor:
  """The focal loss as the release has it: a one-hot array made on the host."""
  probability = torch.softmax(logits, 1).permute(0, 2, 3, 1).reshape(-1, 2)
  classes = mask.reshape(-1, 1).cpu().long()
  one_hot = torch.zeros(len(classes), 2).scatter_(1, classes, 1)
  one_hot = one_hot.to(logits.device)
  one_hot = one_hot.clamp(_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH)
  probability = (one_hot * probability).sum(1) + _FOCAL_SMOOTH
  return (-((1 - probability) ** 2) * probability.log()).mean()


class TrainStep:
  """Forward, backward and Adam on one batch."""

  def __init__(
    self,
    model: Draem,
    variant: Variant,
    device: torch.device,
    *,
    learning_rate: float = 1e-4,
  ):
    """Moves `model` to `device` in the variant's layout."""
    self._model = place(model.train(), variant, device)
    self._variant, self._device = variant, device
    self._optimizer = torch.optim.Adam(
      self._model.parameters(),
      learning_rate,
      # The release leaves this choice to PyTorch.
      fused=None if variant.release else True,
    )
    compiled = variant.compiled
    self._loss = torch.compile(self._total) if compiled else self._total

  def __call__(self, augmented: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """The loss before the step; all on the device, [b c h w]."""
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._loss(augmented, image, mask)
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def _total(self, augmented: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    with torch.autocast(
      self._device.type, torch.bfloat16, enabled=self._variant.bfloat16
    ):
      reconstruction, logits = self._model(augmented)
    terms = losses(
      reconstruction, logits, image, mask, release=self._variant.release
    )
    return sum(terms.values())


class Scorer:
  """From uint8 images on the host to maps and scores on the host."""

  def __init__(self, model: Draem, variant: Variant, device: torch.device):
    """Moves `model` to `device` in the variant's layout."""
    model = model.eval()
    if variant.folded:
      model = _fold(model)
    self._model = place(model, variant, device)
    self._variant, self._device = variant, device
    self._scores = (
      torch.compile(self._score) if variant.compiled else self._score
    )

  @torch.inference_mode()
  def __call__(self, images: Any) -> tuple[Any, Any, Any]:
    """Reconstruction, anomaly map [b h w] and score [b] of [b h w 3]."""
    images = torch.from_numpy(images).to(self._device)
    return tuple(x.cpu().numpy() for x in self._scores(images))

  def _score(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = images.permute(0, 3, 1, 2).float() / 255
    x = x.contiguous(memory_format=_memory_format(self._variant))
    with torch.autocast(
      self._device.type, torch.bfloat16, enabled=self._variant.bfloat16
    ):
      reconstruction, logits = self._model(x)
    logits = logits.float()
    anomaly_map = torch.sigmoid(logits[:, 1] - logits[:, 0])
    means = functional.avg_pool2d(anomaly_map[:, None], 21, 1, 10)
    return reconstruction.float(), anomaly_map, means.amax((1, 2, 3))


def _memory_format(variant: Variant) -> torch.memory_format:
  if variant.channels_last:
    return torch.channels_last
  return torch.contiguous_format


def place(what: Any, variant: Variant, device: torch.device) -> Any:
  """A network or images [b c h w] on the device, in the variant's layout."""
  return what.to(device, memory_format=_memory_format(variant))


def _fold(module: nn.Module) -> nn.Module:
  """Folds each batch norm into the convolution before it, in place."""
  for child in module.children():
    _fold(child)
  if isinstance(module, nn.Sequential):
    layers = list(module)
    for index, norm in enumerate(layers):
      if isinstance(norm, nn.BatchNorm2d):
        conv = layers[index - 1]
        module[index - 1] = nn.utils.fuse_conv_bn_eval(conv, norm)
        module[index] = nn.Identity()
  return module
