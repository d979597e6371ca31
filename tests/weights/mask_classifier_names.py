"""Names and shapes of mmsegmentation's Mask2Former and MaskFormer at their published sizes."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEADS, LEVELS, POINTS, QUERIES = 256, 8, 3, 4, 100
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def batch_norm(name: str, channels: int) -> Shapes:
    statistics = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return {**norm(name, channels), **statistics, f"{name}.num_batches_tracked": ()}


def conv(name: str, inputs: int, outputs: int, size: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (outputs, inputs, size, size)}
    return {**weight, f"{name}.bias": (outputs,)} if bias else weight


def conv_norm(name: str, inputs: int, outputs: int, size: int, bias: bool = False) -> Shapes:
    return {**conv(f"{name}.conv", inputs, outputs, size, bias), **norm(f"{name}.gn", outputs)}


def feed_forward(name: str, width: int, hidden: int) -> Shapes:
    return {**linear(f"{name}.layers.0.0", width, hidden), **linear(f"{name}.layers.1", hidden, width)}


def swin(width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> Shapes:
    shapes = {
        **conv("backbone.patch_embed.projection", 3, width, 4),
        **norm("backbone.patch_embed.norm", width),
    }
    for stage, (depth, num_heads) in enumerate(zip(depths, heads, strict=True)):
        channels = width * 2**stage
        for index in range(depth):
            block = f"backbone.stages.{stage}.blocks.{index}"
            shapes |= norm(f"{block}.norm1", channels) | norm(f"{block}.norm2", channels)
            shapes[f"{block}.attn.w_msa.relative_position_bias_table"] = ((2 * window - 1) ** 2, num_heads)
            shapes[f"{block}.attn.w_msa.relative_position_index"] = (window**2, window**2)
            shapes |= linear(f"{block}.attn.w_msa.qkv", channels, 3 * channels)
            shapes |= linear(f"{block}.attn.w_msa.proj", channels, channels)
            shapes |= feed_forward(f"{block}.ffn", channels, 4 * channels)
        if stage < 3:
            shapes |= norm(f"backbone.stages.{stage}.downsample.norm", 4 * channels)
            shapes[f"backbone.stages.{stage}.downsample.reduction.weight"] = (2 * channels, 4 * channels)
        shapes |= norm(f"backbone.norm{stage}", channels)
    return shapes


def resnet(depths: Sequence[int]) -> Shapes:
    shapes = {**conv("backbone.conv1", 3, 64, 7, bias=False), **batch_norm("backbone.bn1", 64)}
    inputs = 64
    for stage, depth in enumerate(depths):
        width, outputs = 64 * 2**stage, 256 * 2**stage
        for index in range(depth):
            block = f"backbone.layer{stage + 1}.{index}"
            sides = ((inputs, width, 1), (width, width, 3), (width, outputs, 1))
            for k, (c_in, c_out, size) in enumerate(sides, start=1):
                shapes |= conv(f"{block}.conv{k}", c_in, c_out, size, bias=False)
                shapes |= batch_norm(f"{block}.bn{k}", c_out)
            if index == 0:
                shapes |= conv(f"{block}.downsample.0", inputs, outputs, 1, bias=False)
                shapes |= batch_norm(f"{block}.downsample.1", outputs)
            inputs = outputs
    return shapes


def queries(layers: int, classes: int) -> Shapes:
    """Transformer of queries, and what makes classes and masks of them."""
    shapes: Shapes = {}
    for index in range(layers):
        layer = f"decode_head.transformer_decoder.layers.{index}"
        for attention in ("self_attn", "cross_attn"):
            shapes[f"{layer}.{attention}.attn.in_proj_weight"] = (3 * WIDTH, WIDTH)
            shapes[f"{layer}.{attention}.attn.in_proj_bias"] = (3 * WIDTH,)
            shapes |= linear(f"{layer}.{attention}.attn.out_proj", WIDTH, WIDTH)
        shapes |= feed_forward(f"{layer}.ffn", WIDTH, 2048)
        for k in range(3):
            shapes |= norm(f"{layer}.norms.{k}", WIDTH)
    shapes |= norm("decode_head.transformer_decoder.post_norm", WIDTH)
    shapes["decode_head.query_embed.weight"] = (QUERIES, WIDTH)
    shapes |= linear("decode_head.cls_embed", WIDTH, classes + 1)
    for k in (0, 2, 4):
        shapes |= linear(f"decode_head.mask_embed.{k}", WIDTH, WIDTH)
    return shapes


def mask2former_head(channels: Sequence[int], classes: int) -> Shapes:
    decoder = "decode_head.pixel_decoder"
    shapes = queries(9, classes)
    for level, inputs in enumerate(reversed(channels[1:])):
        shapes |= conv_norm(f"{decoder}.input_convs.{level}", inputs, WIDTH, 1, bias=True)
    for index in range(6):
        layer = f"{decoder}.encoder.layers.{index}"
        samples = HEADS * LEVELS * POINTS
        shapes |= linear(f"{layer}.self_attn.sampling_offsets", WIDTH, 2 * samples)
        shapes |= linear(f"{layer}.self_attn.attention_weights", WIDTH, samples)
        shapes |= linear(f"{layer}.self_attn.value_proj", WIDTH, WIDTH)
        shapes |= linear(f"{layer}.self_attn.output_proj", WIDTH, WIDTH)
        shapes |= feed_forward(f"{layer}.ffn", WIDTH, 1024)
        shapes |= norm(f"{layer}.norms.0", WIDTH) | norm(f"{layer}.norms.1", WIDTH)
    shapes[f"{decoder}.level_encoding.weight"] = shapes["decode_head.level_embed.weight"] = (LEVELS, WIDTH)
    shapes["decode_head.query_feat.weight"] = (QUERIES, WIDTH)
    shapes |= conv_norm(f"{decoder}.lateral_convs.0", channels[0], WIDTH, 1)
    shapes |= conv_norm(f"{decoder}.output_convs.0", WIDTH, WIDTH, 3)
    return shapes | conv(f"{decoder}.mask_feature", WIDTH, WIDTH, 1)


def maskformer_head(channels: Sequence[int], classes: int) -> Shapes:
    decoder = "decode_head.pixel_decoder"
    shapes = queries(6, classes)
    for level, inputs in enumerate(channels[:-1]):
        shapes |= conv_norm(f"{decoder}.lateral_convs.{level}", inputs, WIDTH, 1)
        shapes |= conv_norm(f"{decoder}.output_convs.{level}", WIDTH, WIDTH, 3)
    shapes |= conv_norm(f"{decoder}.last_feat_conv", channels[-1], WIDTH, 3)
    shapes |= conv("decode_head.decoder_input_proj", channels[-1], WIDTH, 1)
    return shapes | conv(f"{decoder}.mask_feature", WIDTH, WIDTH, 3)


#: Backbones by the name that the files have, and the channels of their stages.
BACKBONES: dict[str, tuple[Shapes, tuple[int, ...]]] = {
    "r50": (resnet((3, 4, 6, 3)), (256, 512, 1024, 2048)),
    "r101": (resnet((3, 4, 23, 3)), (256, 512, 1024, 2048)),
    "swin-t": (swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7), (96, 192, 384, 768)),
    "swin-s": (swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7), (96, 192, 384, 768)),
    "swin-b": (swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12), (128, 256, 512, 1024)),
    "swin-l": (swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12), (192, 384, 768, 1536)),
}


def network(name: str, classes: int = 150) -> Shapes:
    """A network, such as ``mask2former_swin-s``."""
    kind, _, backbone = name.partition("_")
    shapes, channels = BACKBONES[backbone]
    return {
        **shapes,
        **{"mask2former": mask2former_head, "maskformer": maskformer_head}[kind](channels, classes),
    }
