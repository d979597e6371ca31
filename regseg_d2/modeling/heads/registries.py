"""Registries of the stages of a head, which are built with ``(cfg, in_channels)`` if not said otherwise."""

from __future__ import annotations

from detectron2.utils.registry import Registry

FUSION = Registry("FUSION")
FUSION.__doc__ = """
Modules that make one feature of all features of the backbone, before the context module. They are built
with ``(cfg, shapes)``, the shapes by increasing stride: modules
``[(N, C_i, h_i, w_i), ...] -> (N, D, h, w)``, ``h x w`` the first one's, with an attribute
``out_channels`` D.
"""

CONTEXT_MODULE = Registry("CONTEXT_MODULE")
CONTEXT_MODULE.__doc__ = """
Modules ``x (N, C, h, w) -> (features (N, D, h, w), side_outputs)`` with an attribute ``out_channels`` D.

- Side outputs are a dict of extra predictions by name, in training: logits ``(N, K, h', w')``, unless the
  module says otherwise. It has an attribute ``side_loss_weights``, the weight of each one's loss by name,
  and, for those that are no logits, ``side_losses``: by name, modules
  ``(output, labels (N, H, W)) -> scalar``.
- A module that does nothing but convolve says so with ``aggregates_context = False``.
- A module with ``reads_coarse_logits = True`` is called with ``(x, coarse (N, K, h', w'))``: the auxiliary
  head's logits, which then is a part of the model at inference too.
"""

AUGMENT = Registry("AUGMENT")
AUGMENT.__doc__ = """
Stages behind the context module that stay at inference. They are called with ``(cfg, in_channels,
deep_channels)``: modules ``(x, deep) -> (features, side_logits)``, where ``x`` is what the context module
made of the backbone feature ``deep``. Attributes as those of a context module; one that has to be
changed by a regularizer in each training step has a method ``check_regularizers``. One with a method
``before_context`` changes ``deep`` first, for the context module and itself; the channels it then has are its
attribute ``entering_channels``.
"""

PROJECTION = Registry("PROJECTION")
PROJECTION.__doc__ = """
Last blocks before the classifier: modules ``(N, C, h, w) -> (N, D, h, w)`` with ``out_channels`` D.
"""
