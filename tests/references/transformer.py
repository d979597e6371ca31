"""SegFormer's layers and bilinear resizing as slow loops in float64, written from the papers."""

import math

import torch


def resize_bilinear(x, height, width):
    """``(C, h, w)`` at another size: pixel centers at half-integers, borders repeated."""
    channels, h, w = x.shape
    out = torch.zeros(channels, height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            row = min(max((i + 0.5) * h / height - 0.5, 0.0), h - 1)
            column = min(max((j + 0.5) * w / width - 0.5, 0.0), w - 1)
            top, left = int(math.floor(row)), int(math.floor(column))
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = row - top, column - left
            upper = (1 - b) * x[:, top, left] + b * x[:, top, right]
            lower = (1 - b) * x[:, bottom, left] + b * x[:, bottom, right]
            out[:, i, j] = (1 - a) * upper + a * lower
    return out


def convolve(x, weight, bias, stride=1, padding=0, dilation=1, groups=1):
    """A convolution of ``(C, h, w)`` with zeros around it, pixel by pixel."""
    out_channels, _, kh, kw = weight.shape
    _, h, w = x.shape
    height = (h + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    width = (w + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    inside, outside = x.shape[0] // groups, out_channels // groups
    out = torch.zeros(out_channels, height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            for a in range(kh):
                for b in range(kw):
                    row = i * stride + a * dilation - padding
                    column = j * stride + b * dilation - padding
                    if not (0 <= row < h and 0 <= column < w):
                        continue
                    for group in range(groups):
                        kernels = weight[group * outside : (group + 1) * outside, :, a, b]
                        pixel = x[group * inside : (group + 1) * inside, row, column]
                        out[group * outside : (group + 1) * outside, i, j] += kernels @ pixel
    return out if bias is None else out + bias[:, None, None]


def layer_norm(pixel, weight, bias, eps=1e-6):
    """Normalises the channels ``(C,)`` of one pixel."""
    mean = pixel.mean()
    variance = ((pixel - mean) ** 2).mean()
    return (pixel - mean) / torch.sqrt(variance + eps) * weight + bias


def attend(queries, keys, values, num_heads):
    """Eq. 1 for tokens ``(L, C)``: each query's softmax over all keys, head by head."""
    width = queries.shape[1] // num_heads
    out = torch.zeros_like(queries)
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(queries)):
            scores = [float(queries[i, part] @ key[part]) / math.sqrt(width) for key in keys]
            shares = [math.exp(score - max(scores)) for score in scores]
            for share, value in zip(shares, values, strict=True):
                out[i, part] += share / sum(shares) * value[part]
    return out


def gelu(x):
    """x times the normal distribution function of x."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
