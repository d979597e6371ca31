"""The names of timm that it does not publish and this package needs: what a new timm may break is here."""

from timm.models._features import FeatureGetterNet
from timm.models._manipulate import MATCH_PREV_GROUP, group_with_matcher

__all__ = ["MATCH_PREV_GROUP", "FeatureGetterNet", "group_with_matcher"]
