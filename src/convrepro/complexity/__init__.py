"""What a network costs, by layer and by counting rule."""

from convrepro.complexity.counting import count, cross_check
from convrepro.complexity.rules import MULTIPLYING, RULES, Count, LayerCount, Rule

__all__ = ["MULTIPLYING", "RULES", "Count", "LayerCount", "Rule", "count", "cross_check"]
