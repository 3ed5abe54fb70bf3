"""Multi-scale deformable attention: the operator and its module."""

from models.ops.functional import multi_scale_deformable_attention
from models.ops.module import MSDeformAttn

__all__ = ["MSDeformAttn", "multi_scale_deformable_attention"]
